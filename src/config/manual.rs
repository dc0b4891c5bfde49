//! The manual, and the settings in force, as text.

use std::fmt::Write;

use super::{Config, Loaded, RELATIONS, SETTINGS, Setting};

const PREFACE: &str = "\
<!-- Made from the table in src/config.rs. Change it there, then: UPDATE_DOCS=1 cargo test --lib manual -->

# Configuration

Twinspan runs without any configuration. What is set is taken from, the strongest first:

1. flags: those named below, and `--set KEY=VALUE` for any setting
2. environment variables: `TWINSPAN_` and the setting's name in capitals, dots as underscores
3. the file given by `--config FILE`, in TOML
4. the defaults below

`twinspan config` prints what is in force and where each value came from; `twinspan config --check` only says whether it can
be used. Everything that is wrong is reported at once, and settings that do not exist are errors, in the file as in the
environment. (Variables that Kubernetes sets for a service named `twinspan`, such as `TWINSPAN_SERVICE_HOST` and
`TWINSPAN_PORT_7080_TCP`, are passed over.)

Sizes are numbers of bytes, or have a unit: `\"64KiB\"`, `\"16MiB\"`, `\"1GiB\"`. Times have a unit: `\"500ms\"`, `\"10s\"`, `\"2m\"`,
`\"1h\"`, `\"7d\"`. Lists and maps are written with commas in the environment: `TWINSPAN_ROUTES=query=brain,BRAIN_REQUEST=brain`.

```toml
listen = \"127.0.0.1:7080\"
routes = { query = \"brain\" }

[log]
format = \"json\"

[limits]
frame_bytes = \"256KiB\"
```
";

const SECTIONS: [(&str, &str); 10] = [
    ("", "The gateway as a whole."),
    (
        "auth",
        "How peers prove who they are: [AUTH.md](AUTH.md). Without `issuers`, `api_keys` and `certificates` nobody has to. No secret is ever a setting; all are in files.",
    ),
    ("tls", "What is spoken on `listen`, and who is asked for certificates."),
    (
        "proxy",
        "Proxies and load balancers in front of the gateway: whom they speak for counts only where they are trusted.",
    ),
    ("log", "The gateway's own log, not that of sessions."),
    ("drain", "What happens on SIGTERM and Ctrl-C."),
    (
        "disk",
        "How the disk is used, where `durability` is not `memory`. docs/STORAGE.md tells more.",
    ),
    (
        "backup",
        "Backups on a schedule: files that `twinspan restore` takes. `twinspan backup` makes one at any time.",
    ),
    (
        "retention",
        "How much of each session is kept, for those who come back. What is no longer there is told by a `Gap`. Of `age`, `frames`, `bytes` and `idle` a session may ask for less by itself (`Session.retention`), not for more.",
    ),
    (
        "limits",
        "What peers are held to. Each is at least 1; there is no \"unlimited\". Fixed, since every member and client relies on them: names and ids have at most 128 characters, metadata at most 32 entries and 16 KiB, payloads at most 32 levels, tokens at most 16 KiB.",
    ),
];

impl Config {
    /// docs/CONFIGURATION.md.
    pub fn markdown() -> String {
        let mut text = PREFACE.to_owned();
        for (section, about) in SECTIONS {
            let title = if section.is_empty() {
                "General".to_owned()
            } else {
                format!("`[{section}]`")
            };
            text += &format!("\n## {title}\n\n{about}\n\n| setting | default | meaning |\n|---|---|---|\n");
            SETTINGS
                .iter()
                .filter(|setting| setting.section() == section)
                .for_each(|setting| text += &row(setting));
        }
        text += "\n## What must fit together\n\n";
        for relation in RELATIONS {
            text += &format!("- `{}`: {}\n", relation.keys[0], relation.expected);
        }
        text
    }
}

fn row(setting: &Setting) -> String {
    let flag = setting.flag.map_or_else(String::new, |flag| format!("<br>`--{flag}`"));
    let default = setting.value(&Config::default());
    format!(
        "| `{}`<br>`{}`{flag} | `{default}` | {} |\n",
        setting.key,
        setting.variable(),
        setting.doc
    )
}

impl Loaded {
    /// The settings in force as TOML, with where each came from.
    pub fn toml(&self) -> String {
        let mut text = String::new();
        for (section, _) in SECTIONS {
            if !section.is_empty() {
                text += &format!("\n[{section}]\n");
            }
            for setting in SETTINGS.iter().filter(|setting| setting.section() == section) {
                let name = setting.key.rsplit('.').next().unwrap_or(setting.key);
                let line = format!("{name} = {}", setting.value(&self.config));
                // Writing to a string cannot fail.
                writeln!(text, "{line:<40} # {}", self.origin(setting.key)).ok();
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::{Flag, Inputs};

    /// Compares a generated page with the one in the repository, or writes it there.
    fn in_step(name: &str, text: &str) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs").join(name);
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == text,
            "docs/{name} is not in step: UPDATE_DOCS=1 cargo test --lib manual"
        );
    }

    #[test]
    fn manual_of_settings_is_in_step() {
        in_step("CONFIGURATION.md", &Config::markdown());
    }

    #[test]
    fn manual_of_errors_is_in_step() {
        in_step("ERRORS.md", &crate::error::markdown());
    }

    #[test]
    fn manual_of_permissions_is_in_step() {
        in_step("PERMISSIONS.md", &crate::auth::markdown());
    }

    #[test]
    fn every_setting_is_in_a_section_of_the_manual() {
        assert!(
            SETTINGS
                .iter()
                .all(|setting| SECTIONS.iter().any(|(section, _)| *section == setting.section()))
        );
    }

    #[test]
    fn what_is_printed_can_be_loaded() {
        let flags = [("limits.roles", "7"), ("routes", "query=brain"), ("log.format", "json")];
        let flags = flags.map(|(key, value)| Flag {
            flag: "--set".to_owned(),
            key: key.to_owned(),
            value: value.to_owned(),
        });
        let loaded = Config::load(Inputs {
            flags: flags.to_vec(),
            ..Inputs::default()
        })
        .unwrap();
        let path = std::env::temp_dir().join(format!("twinspan-manual-{}.toml", std::process::id()));
        std::fs::write(&path, loaded.toml()).unwrap();
        let again = Config::load(Inputs {
            file: Some(path.clone()),
            ..Inputs::default()
        });
        std::fs::remove_file(&path).unwrap();
        let again = again.unwrap();
        for setting in SETTINGS {
            assert_eq!(
                setting.value(&again.config),
                setting.value(&loaded.config),
                "{}",
                setting.key
            );
        }
    }
}
