//! The repository keeps its own rules: rooms use only what is below them, every file says what it is, tests wait for what
//! they expect and never for time.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What each room may use, beside itself.
const ROOMS: [(&str, &[&str]); 16] = [
    ("limits", &[]),
    ("error", &["frame"]),
    ("frame", &["error"]),
    ("auth", &["error", "frame"]),
    ("edge", &["error"]),
    ("session", &["error", "frame", "limits"]),
    ("log", &["error", "frame"]),
    ("router", &["auth", "error", "frame", "limits", "log", "session"]),
    (
        "connection",
        &["auth", "error", "frame", "limits", "log", "router", "session"],
    ),
    (
        "transport",
        &[
            "auth",
            "connection",
            "edge",
            "error",
            "frame",
            "limits",
            "router",
            "session",
        ],
    ),
    ("config", &["auth", "edge", "limits", "log"]),
    ("telemetry", &["config"]),
    (
        "server",
        &[
            "auth",
            "config",
            "edge",
            "error",
            "frame",
            "limits",
            "log",
            "router",
            "transport",
        ],
    ),
    ("client", &["error", "frame"]),
    (
        "cli",
        &[
            "auth",
            "client",
            "config",
            "edge",
            "error",
            "frame",
            "log",
            "router",
            "server",
            "telemetry",
        ],
    ),
    ("main", &[]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, ending));
        } else if path.extension().is_some_and(|end| end == ending) {
            found.push(path);
        }
    }
    found
}

fn sources() -> Vec<(PathBuf, String)> {
    let src = root().join("src");
    let read = |path: PathBuf| {
        (
            path.strip_prefix(&src).unwrap().to_owned(),
            fs::read_to_string(&path).unwrap(),
        )
    };
    files(&src, "rs").into_iter().map(read).collect()
}

fn room_of(path: &Path) -> String {
    let first = path.iter().next().unwrap().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The code without its tests, which may reach further.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

#[test]
fn rooms_use_only_what_is_below_them() {
    let mut wrong = Vec::new();
    for (path, text) in sources() {
        let room = room_of(&path);
        let is_test = path
            .iter()
            .any(|part| ["tests.rs", "suite.rs", "simulation.rs", "echo.rs"].contains(&part.to_str().unwrap()));
        if room == "lib" || is_test {
            continue;
        }
        let (_, below) = ROOMS
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("a new room: {room}"));
        for used in code(&text).split("crate::").skip(1) {
            // A brace opens a list of several rooms.
            let names = used
                .strip_prefix('{')
                .map_or(used, |list| list.split('}').next().unwrap_or(list));
            let name: String = names.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if ROOMS.iter().any(|(room, _)| *room == name) && name != room && !below.contains(&name.as_str()) {
                wrong.push(format!("{} uses {name}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_session_is_pure() {
    for (path, text) in sources() {
        if room_of(&path) != "session" || path.ends_with("simulation.rs") {
            continue;
        }
        for impure in [
            "tokio",
            "prost",
            "tonic",
            "serde",
            "async ",
            "::now()",
            "getrandom",
            "std::sync::Mutex",
        ] {
            let found = code(&text)
                .lines()
                .find(|line| !line.trim_start().starts_with("//") && line.contains(impure));
            assert_eq!(found, None, "{} is to be pure", path.display());
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    let folders = ["src", "tests", "benches", "build", "fuzz"].map(|folder| root().join(folder));
    for path in folders
        .iter()
        .filter(|folder| folder.exists())
        .flat_map(|folder| files(folder, "rs"))
    {
        if path.iter().any(|part| part == "target" || part == "node_modules") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let first = text.lines().find(|line| !line.starts_with("#!")).unwrap_or_default();
        assert!(first.starts_with("//!"), "{} begins with {first:?}", path.display());
    }
}

#[test]
fn tests_wait_for_what_they_expect() {
    for path in files(&root().join("tests"), "rs") {
        let text = fs::read_to_string(&path).unwrap();
        let sleeps = [concat!("sle", "ep("), concat!("sleep", "_until")];
        assert!(
            !sleeps.iter().any(|sleep| text.contains(sleep)),
            "{} sleeps",
            path.display()
        );
    }
}

#[test]
fn every_module_is_used() {
    let texts: Vec<_> = sources();
    let declared: BTreeSet<String> = texts
        .iter()
        .flat_map(|(_, text)| text.lines())
        .filter_map(|line| line.trim().strip_suffix(';')?.rsplit_once("mod "))
        .map(|(_, name)| name.to_owned())
        .collect();
    for (path, _) in &texts {
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(
            ["mod", "lib", "main"].contains(&name) || declared.contains(name),
            "{} is dead",
            path.display()
        );
    }
}
