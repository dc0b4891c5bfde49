//! Loading: from the file, the environment and the flags to a `Config`, or to everything that is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::kind::Raw;
use super::{Config, RELATIONS, Relation, SETTINGS, Setting, setting};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nobody said otherwise.
    Default,
    /// The file.
    File(PathBuf),
    /// The environment variable.
    Variable(String),
    /// The flag, with its dashes.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// A setting on the command line.
#[derive(Clone, Debug)]
pub struct Flag {
    /// As it was written, with its dashes.
    pub flag: String,
    /// The setting.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// All that settings are loaded from, from the weakest to the strongest.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The defaults.
    pub base: Config,
    /// The file.
    pub file: Option<PathBuf>,
    /// The environment; variables that do not begin with `TWINSPAN_` are passed over.
    pub variables: Vec<(String, String)>,
    /// The command line.
    pub flags: Vec<Flag>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The setting, or what was taken for one.
    pub key: String,
    /// Where it was found.
    pub source: Source,
    /// Its value, where it has one.
    pub value: Option<String>,
    /// What would have been right.
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            key,
            source,
            value,
            expected,
        } = self;
        match value {
            Some(value) => write!(f, "{key} = {value} ({source}): expected {expected}"),
            None if key.is_empty() => write!(f, "{source}: {expected}"),
            None => write!(f, "{key} ({source}): {expected}"),
        }
    }
}

/// Everything that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(pub Vec<Problem>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        let problems = if count == 1 {
            "1 problem"
        } else {
            &format!("{count} problems")
        };
        write!(f, "the settings have {problems}:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Errors {}

/// Settings, and where each came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The settings in force.
    pub config: Config,
    origins: BTreeMap<&'static str, Source>,
}

impl Loaded {
    /// Where a setting came from.
    pub fn origin(&self, key: &str) -> Source {
        self.origins.get(key).cloned().unwrap_or(Source::Default)
    }
}

impl Config {
    /// Loads the settings, or says everything that is wrong with them.
    pub fn load(inputs: Inputs) -> Result<Loaded, Errors> {
        let mut loading = Loading {
            loaded: Loaded {
                config: inputs.base,
                origins: BTreeMap::new(),
            },
            problems: Vec::new(),
            bad: BTreeSet::new(),
        };
        if let Some(path) = &inputs.file {
            loading.file(path);
        }
        loading.variables(inputs.variables);
        loading.flags(inputs.flags);
        RELATIONS.iter().for_each(|relation| loading.check(relation));
        for (key, problem) in loading.loaded.config.auth.problems() {
            loading.problem(key, loading.loaded.origin(key), None, problem);
        }
        if loading.problems.is_empty() {
            Ok(loading.loaded)
        } else {
            Err(Errors(loading.problems))
        }
    }
}

struct Loading {
    loaded: Loaded,
    problems: Vec<Problem>,
    /// Settings whose value could not be read, so that nothing is concluded from the one that stands in its place.
    bad: BTreeSet<&'static str>,
}

impl Loading {
    fn file(&mut self, path: &Path) {
        let source = Source::File(path.to_owned());
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => return self.problem("", source, None, format!("cannot be read: {error}")),
        };
        match text.parse::<Table>() {
            Ok(table) => self.table("", table, &source),
            Err(error) => self.problem(
                "",
                source,
                None,
                format!("is not TOML: {}", error.to_string().trim_end()),
            ),
        }
    }

    fn table(&mut self, section: &str, table: Table, source: &Source) {
        for (name, value) in table {
            let key = if section.is_empty() {
                name
            } else {
                format!("{section}.{name}")
            };
            match value {
                value if setting(&key).is_some() => self.assign(&key, source.clone(), &Raw::Toml(value)),
                Value::Table(table) if is_section(&key) => self.table(&key, table, source),
                value if is_section(&key) => {
                    self.problem(
                        &key,
                        source.clone(),
                        Some(value.to_string()),
                        format!("a section: [{key}]"),
                    );
                }
                _ => self.unknown(
                    &key,
                    source.clone(),
                    nearest(&key).map(|setting| setting.key.to_owned()),
                ),
            }
        }
    }

    fn variables(&mut self, variables: Vec<(String, String)>) {
        for (name, value) in variables {
            if !name.starts_with("TWINSPAN_") || is_service_link(&name) || name == super::TOKEN_VARIABLE {
                continue;
            }
            let source = Source::Variable(name.clone());
            match SETTINGS.iter().find(|setting| setting.variable() == name) {
                Some(setting) => self.assign(setting.key, source, &Raw::Text(value)),
                None => self.unknown(&name, source, nearest(&name).map(Setting::variable)),
            }
        }
    }

    fn flags(&mut self, flags: Vec<Flag>) {
        for Flag { flag, key, value } in flags {
            self.assign(&key, Source::Flag(flag), &Raw::Text(value));
        }
    }

    fn assign(&mut self, key: &str, source: Source, raw: &Raw) {
        let Some(setting) = setting(key) else {
            return self.unknown(key, source, nearest(key).map(|setting| setting.key.to_owned()));
        };
        if (setting.read)(&mut self.loaded.config, raw).is_some() {
            self.loaded.origins.insert(setting.key, source);
        } else {
            self.bad.insert(setting.key);
            // Somebody may have put a secret where the path of one belongs.
            let shown = if setting.section() == "auth" {
                "…".to_owned()
            } else {
                raw.shown()
            };
            self.problem(key, source, Some(shown), setting.expected);
        }
    }

    fn unknown(&mut self, key: &str, source: Source, suggestion: Option<String>) {
        let advice = match suggestion {
            Some(name) => format!("there is no such setting; did you mean {name}?"),
            None => "there is no such setting".to_owned(),
        };
        self.problem(key, source, None, advice);
    }

    fn problem(&mut self, key: &str, source: Source, value: Option<String>, expected: impl Into<String>) {
        self.problems.push(Problem {
            key: key.to_owned(),
            source,
            value,
            expected: expected.into(),
        });
    }

    fn check(&mut self, relation: &Relation) {
        let config = &self.loaded.config;
        if (relation.holds)(config) || relation.keys.iter().any(|key| self.bad.contains(key)) {
            return;
        }
        let described = |key: &&str| {
            let value = setting(key).map_or_else(String::new, |setting| setting.value(config));
            (value, self.loaded.origin(key))
        };
        let mut expected = relation.expected.to_owned();
        for key in &relation.keys[1..] {
            let (value, source) = described(key);
            expected += &format!(" ({key} = {value}, {source})");
        }
        let (value, source) = described(&relation.keys[0]);
        self.problem(relation.keys[0], source, Some(value), expected);
    }
}

fn is_section(key: &str) -> bool {
    SETTINGS.iter().any(|setting| setting.section() == key)
}

/// Variables that Kubernetes and Docker put into every container beside a service named `twinspan`: nobody's settings.
fn is_service_link(name: &str) -> bool {
    let rest = name.strip_prefix("TWINSPAN_").unwrap_or_default();
    rest == "PORT"
        || rest == "NAME"
        || rest.starts_with("SERVICE_HOST")
        || rest.starts_with("SERVICE_PORT")
        || rest
            .strip_prefix("PORT_")
            .is_some_and(|port| port.starts_with(|c: char| c.is_ascii_digit()))
}

/// The setting that was most likely meant by a key or a variable.
fn nearest(name: &str) -> Option<&'static Setting> {
    let name = comparable(name.strip_prefix("TWINSPAN_").unwrap_or(name));
    SETTINGS
        .iter()
        .map(|setting| (likeness(&name, &comparable(setting.key)), setting))
        .filter(|(likeness, _)| *likeness >= 0.65)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, setting)| setting)
}

fn comparable(name: &str) -> String {
    name.replace('.', "_").to_lowercase()
}

/// Counts what comes after the section twice: a section in common makes no likeness yet.
fn likeness(a: &str, b: &str) -> f64 {
    let within = |name: &str| {
        name.split_once('_')
            .map_or_else(|| name.to_owned(), |(_, within)| within.to_owned())
    };
    let alike = strsim::normalized_damerau_levenshtein;
    (alike(a, b) + alike(&within(a), &within(b))) / 2.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn variables(given: &[(&str, &str)]) -> Inputs {
        let variables = given
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Inputs {
            variables,
            ..Inputs::default()
        }
    }

    fn flag(key: &str, value: &str) -> Flag {
        Flag {
            flag: format!("--{key}"),
            key: key.to_owned(),
            value: value.to_owned(),
        }
    }

    /// A file with this content; it is gone when the test is.
    struct File(PathBuf);

    impl File {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("twinspan-config-{}-{name}.toml", std::process::id()));
            std::fs::write(&path, text).unwrap();
            Self(path)
        }

        fn inputs(&self) -> Inputs {
            Inputs {
                file: Some(self.0.clone()),
                ..Inputs::default()
            }
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).ok();
        }
    }

    fn problems(inputs: Inputs) -> Vec<String> {
        Config::load(inputs)
            .unwrap_err()
            .0
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_defaults_hold_together() {
        let loaded = Config::load(Inputs::default()).unwrap();
        assert!(
            SETTINGS
                .iter()
                .all(|setting| loaded.origin(setting.key) == Source::Default)
        );
    }

    #[test]
    fn every_default_is_read_as_it_is_shown() {
        for setting in SETTINGS {
            let mut config = Config::default();
            let shown = (setting.show)(&config);
            assert!(
                (setting.read)(&mut config, &Raw::Toml(shown.clone())).is_some(),
                "{}",
                setting.key
            );
            assert_eq!((setting.show)(&config), shown, "{}", setting.key);
        }
    }

    #[test]
    fn flags_outrank_variables_outrank_the_file_outranks_the_default() {
        let file = File::new(
            "rank",
            "listen = '127.0.0.1:1'\n[limits]\nroles = 1\njoins = 1\nmembers = 1\n",
        );
        let mut inputs = file.inputs();
        inputs.variables = variables(&[
            ("TWINSPAN_LIMITS_ROLES", "2"),
            ("TWINSPAN_LIMITS_JOINS", "2"),
            ("PATH", "/bin"),
        ])
        .variables;
        inputs.flags = vec![flag("limits.roles", "3")];
        let loaded = Config::load(inputs).unwrap();
        let limits = &loaded.config.limits;
        assert_eq!(
            (limits.roles, limits.joins, limits.members, limits.waiting),
            (3, 2, 1, 10_000)
        );
        assert_eq!(loaded.origin("limits.roles"), Source::Flag("--limits.roles".to_owned()));
        assert_eq!(
            loaded.origin("limits.joins"),
            Source::Variable("TWINSPAN_LIMITS_JOINS".to_owned())
        );
        assert_eq!(loaded.origin("limits.members"), Source::File(file.0.clone()));
        assert_eq!(loaded.config.listen.port(), 1);
    }

    #[test]
    fn a_file_may_have_everything() {
        let file = File::new(
            "all",
            r#"
            descriptors = ["a.bin", "b.bin"]
            [routes]
            BRAIN_REQUEST = "brain"
            "v1.query" = "brain"
            [log]
            format = "json"
            filter = "warn,twinspan=debug"
            [retention]
            idle = "2m"
            bytes = 2097152
            "#,
        );
        let config = Config::load(file.inputs()).unwrap().config;
        assert_eq!(config.descriptors, [PathBuf::from("a.bin"), PathBuf::from("b.bin")]);
        assert_eq!(config.routes["v1.query"], "brain");
        assert_eq!(config.retention.bytes, 2 << 20);
        assert_eq!(config.idle, Duration::from_secs(120));
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let file = File::new(
            "wrong",
            "lisen = 1\nlimits = 5\n[log]\nformat = 'xml'\ncolour = true\n[retention]\nframes = 0\n",
        );
        let mut inputs = file.inputs();
        inputs.variables =
            variables(&[("TWINSPAN_LIMIT_FRAME_BYTES", "1"), ("TWINSPAN_DRAIN_GRACE", "soon")]).variables;
        inputs.flags = vec![flag("listen", "localhost")];
        let path = file.0.display();
        let expected = [
            format!("lisen (file {path}): there is no such setting; did you mean listen?"),
            format!("limits = 5 (file {path}): expected a section: [limits]"),
            format!("log.format = \"xml\" (file {path}): expected text or json"),
            format!("log.colour (file {path}): there is no such setting"),
            format!("retention.frames = 0 (file {path}): expected a whole number from 1 to 4294967295"),
            "TWINSPAN_LIMIT_FRAME_BYTES (environment variable TWINSPAN_LIMIT_FRAME_BYTES): there is no such setting; did you \
             mean TWINSPAN_LIMITS_FRAME_BYTES?"
                .to_owned(),
            "drain.grace = \"soon\" (environment variable TWINSPAN_DRAIN_GRACE): expected a time above 0 with its unit, such \
             as \"500ms\", \"10s\", \"2m\", \"1h\" or \"7d\", at most 365d"
                .to_owned(),
            "listen = \"localhost\" (flag --listen): expected an IP address and a port, such as 127.0.0.1:7080 or [::1]:7080"
                .to_owned(),
        ];
        let mut found = problems(inputs);
        let mut expected = expected.to_vec();
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn suggestions() {
        for (given, meant) in [
            ("lisen", "listen"),
            ("limit.frame_bytes", "limits.frame_bytes"),
            ("limits.frame_byte", "limits.frame_bytes"),
            ("TWINSPAN_LOG_FILTERS", "log.filter"),
            ("TWINSPAN_RETENTION_FRAME", "retention.frames"),
        ] {
            assert_eq!(nearest(given).map(|setting| setting.key), Some(meant), "{given}");
        }
        for given in ["log.colour", "limits.x", "TWINSPAN_URL", ""] {
            assert!(nearest(given).is_none(), "{given}: {:?}", nearest(given));
        }
    }

    #[test]
    fn a_file_that_is_none() {
        let missing = Inputs {
            file: Some(PathBuf::from("/nowhere/twinspan.toml")),
            ..Inputs::default()
        };
        assert!(problems(missing)[0].starts_with("file /nowhere/twinspan.toml: cannot be read: "));
        assert!(problems(File::new("broken", "listen = \n").inputs())[0].contains("is not TOML: "));
    }

    #[test]
    fn relations_name_both_sides() {
        let found = problems(variables(&[
            ("TWINSPAN_LIMITS_OUTBOX_BYTES", "64KiB"),
            ("TWINSPAN_LIMITS_ACCEPT_TIMEOUT", "1h"),
        ]));
        assert_eq!(
            found,
            [
                "limits.outbox_bytes = \"64KiB\" (environment variable TWINSPAN_LIMITS_OUTBOX_BYTES): expected at least \
                 limits.frame_bytes, so that any one answer fits (limits.frame_bytes = \"1MiB\", default)",
                "limits.accept_timeout = \"1h\" (environment variable TWINSPAN_LIMITS_ACCEPT_TIMEOUT): expected at most \
                 limits.total_timeout, of which it is a part (limits.total_timeout = \"10m\", default)",
            ]
        );
    }

    #[test]
    fn nothing_is_concluded_from_a_value_that_could_not_be_read() {
        let found = problems(variables(&[
            ("TWINSPAN_LIMITS_OUTBOX_BYTES", "64KiB"),
            ("TWINSPAN_LIMITS_FRAME_BYTES", "small"),
        ]));
        assert_eq!(found.len(), 1, "{found:?}");
    }

    #[test]
    fn a_public_address_must_be_asked_for() {
        let public = ("TWINSPAN_LISTEN", "0.0.0.0:7080");
        let no_auth = ("TWINSPAN_ALLOW_PUBLIC_WITHOUT_AUTH", "true");
        let no_tls = ("TWINSPAN_ALLOW_PUBLIC_WITHOUT_TLS", "true");
        let found = problems(variables(&[public]));
        assert!(found[0].contains("--allow-public-without-auth") && found[1].contains("--allow-public-without-tls"));
        assert_eq!(problems(variables(&[public, no_auth])).len(), 1);
        assert!(Config::load(variables(&[public, no_auth, no_tls])).is_ok());
        let certificate = ("TWINSPAN_TLS_CERTIFICATE", "a.pem");
        let with_tls = [public, no_auth, certificate, ("TWINSPAN_TLS_KEY", "b.pem")];
        assert!(Config::load(variables(&with_tls)).is_ok());
        let mut second = with_tls.to_vec();
        second.push(("TWINSPAN_PLAINTEXT_LISTEN", "0.0.0.0:7081"));
        assert!(problems(variables(&second))[0].contains("--allow-public-without-tls"));
        second.push(no_tls);
        assert!(Config::load(variables(&second)).is_ok());
        assert!(Config::load(variables(&[("TWINSPAN_LISTEN", "[::1]:0")])).is_ok());
    }

    #[test]
    fn issuers_are_told_what_is_wrong_with_them_but_not_what_may_be_a_secret() {
        let issuers = |text: &str| variables(&[("TWINSPAN_AUTH_ISSUERS", text)]);
        let good = r#"[{ issuer = "us", audience = ["a"], algorithms = ["HS256"], secret_file = "/s" }]"#;
        let loaded = Config::load(issuers(good)).unwrap();
        assert_eq!(loaded.config.auth.issuers[0].claim, "twinspan");
        assert!(loaded.toml().contains("secret_file = \"/s\""));
        let found = problems(issuers(&good.replace("HS256", "RS256")));
        let expected = "auth.issuers (environment variable TWINSPAN_AUTH_ISSUERS): \"us\": a secret goes with HS256";
        assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
        let found = problems(issuers(r#"[{ issuer = "us", secret = "hunter2" }]"#));
        assert!(found.len() == 1 && !found[0].contains("hunter2"), "{found:?}");
    }

    #[test]
    fn what_belongs_together_is_given_together() {
        for given in [
            ("TWINSPAN_TLS_CERTIFICATE", "a.pem"),
            ("TWINSPAN_TLS_KEY", "b.pem"),
            ("TWINSPAN_PLAINTEXT_LISTEN", "127.0.0.1:1"),
            ("TWINSPAN_TLS_CLIENT_CERTIFICATES", "required"),
            ("TWINSPAN_PROXY_PROTOCOL", "true"),
            ("TWINSPAN_PROXY_HEADERS", "forwarded"),
        ] {
            assert_eq!(problems(variables(&[given])).len(), 1, "{given:?}");
        }
    }

    #[test]
    fn variables_that_kubernetes_sets_are_not_settings() {
        let links = [
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_GRPC",
            "PORT",
            "PORT_7080_TCP",
            "PORT_7080_TCP_ADDR",
        ];
        for link in links {
            assert!(
                Config::load(variables(&[(&format!("TWINSPAN_{link}"), "tcp://10.0.0.1:7080")])).is_ok(),
                "{link}"
            );
        }
        assert!(Config::load(variables(&[("TWINSPAN_PORTS", "1")])).is_err());
    }

    #[test]
    fn no_setting_looks_like_a_variable_that_kubernetes_sets() {
        assert!(SETTINGS.iter().all(|setting| !is_service_link(&setting.variable())));
    }
}
