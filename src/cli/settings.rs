//! The gateway's settings on the command line, and `twinspan config`.
//!
//! The flags are made from the table of settings, so that a setting is declared in one place only.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use super::{Failure, output};
use crate::config::{Config, Flag, Inputs, Loaded, SETTINGS, Setting};
use crate::server::Server;

/// What the command line says about the settings.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    file: Option<PathBuf>,
    flags: Vec<Flag>,
}

impl Settings {
    /// The settings in force.
    pub fn load(self, base: Config) -> Result<Config, Failure> {
        self.loaded(base).map(|loaded| loaded.config)
    }

    fn loaded(self, base: Config) -> Result<Loaded, Failure> {
        let lossless = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            (
                name.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        };
        let variables = std::env::vars_os().map(lossless).collect();
        Ok(Config::load(Inputs {
            base,
            file: self.file,
            variables,
            flags: self.flags,
        })?)
    }
}

impl Args for Settings {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("A file with settings, in TOML");
        let set = Arg::new("set")
            .long("set")
            .value_name("KEY=VALUE")
            .action(ArgAction::Append)
            .help("Any setting by its name, as in --set limits.frame_bytes=2MiB (docs/CONFIGURATION.md has them all)");
        command.arg(file).args(SETTINGS.iter().filter_map(own_flag)).arg(set)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn own_flag(setting: &Setting) -> Option<Arg> {
    let name = setting.flag?;
    let (help, _) = setting
        .doc
        .split_once(". ")
        .unwrap_or((setting.doc.trim_end_matches('.'), ""));
    let arg = Arg::new(name).long(name).help(help.replace('`', ""));
    Some(if setting.is_switch {
        arg.action(ArgAction::SetTrue)
    } else {
        arg.value_name("VALUE")
    })
}

impl FromArgMatches for Settings {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Vec::new();
        for assignment in matches.get_many::<String>("set").unwrap_or_default() {
            let (key, value) = assignment.split_once('=').ok_or_else(|| {
                let message = format!("--set {assignment}: expected KEY=VALUE, as in --set limits.frame_bytes=2MiB\n");
                clap::Error::raw(clap::error::ErrorKind::InvalidValue, message)
            })?;
            flags.push(Flag {
                flag: "--set".to_owned(),
                key: key.to_owned(),
                value: value.to_owned(),
            });
        }
        flags.extend(SETTINGS.iter().filter_map(|setting| given(setting, matches)));
        Ok(Self {
            file: matches.get_one::<PathBuf>("config").cloned(),
            flags,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn given(setting: &Setting, matches: &ArgMatches) -> Option<Flag> {
    let name = setting.flag?;
    let value = if setting.is_switch {
        matches.get_flag(name).then(|| "true".to_owned())?
    } else {
        matches.get_one::<String>(name)?.clone()
    };
    Some(Flag {
        flag: format!("--{name}"),
        key: setting.key.to_owned(),
        value,
    })
}

/// `twinspan config`.
#[derive(Debug, Args)]
pub struct Show {
    #[command(flatten)]
    settings: Settings,
    /// Only say whether the settings, and the files that they name, can be used
    #[arg(long)]
    check: bool,
}

impl Show {
    pub async fn run(self) -> Result<(), Failure> {
        let loaded = self.settings.loaded(Config::default())?;
        if self.check {
            Server::check(&loaded.config).await?;
            output::line("the settings can be used")
        } else {
            output::text(&loaded.toml())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Settings, clap::Error> {
        let command = Settings::augment_args(Command::new("test"));
        let matches = command.try_get_matches_from(std::iter::once(&"test").chain(arguments))?;
        Settings::from_arg_matches(&matches)
    }

    #[test]
    fn a_flag_of_its_own_outranks_set() {
        let settings = parsed(&[
            "--listen",
            "127.0.0.1:2",
            "--set",
            "listen=127.0.0.1:1",
            "--set",
            "limits.roles=2",
        ])
        .unwrap();
        let config = Config::load(Inputs {
            flags: settings.flags,
            ..Inputs::default()
        })
        .unwrap()
        .config;
        assert_eq!((config.listen.port(), config.limits.roles), (2, 2));
    }

    #[test]
    fn a_switch_stands_alone() {
        let settings = parsed(&[
            "--listen",
            "0.0.0.0:1",
            "--allow-public-without-auth",
            "--allow-public-without-tls",
        ])
        .unwrap();
        assert!(
            Config::load(Inputs {
                flags: settings.flags,
                ..Inputs::default()
            })
            .is_ok()
        );
        assert!(parsed(&[]).unwrap().flags.is_empty());
    }

    #[test]
    fn set_needs_a_value() {
        assert!(parsed(&["--set", "listen"]).is_err());
    }
}
