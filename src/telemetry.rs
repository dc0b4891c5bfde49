//! The process's own log: where it goes, in which form, and what it holds. It never holds payloads or tokens, and nothing that a
//! peer says can end a line of it or reach the terminal as a control character.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing::field::Field;
use tracing::{Level, Metadata};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::FilterFn;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::config::{Config, LogFormat};

/// Why there is no log.
#[derive(Debug)]
pub struct Error(String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the log cannot be set up: {}", self.0)
    }
}

impl std::error::Error for Error {}

/// Has the process's log written to stderr from now on. Once per process.
pub fn init(config: &Config) -> Result<(), Error> {
    let filter = EnvFilter::try_new(filter(&config.log_filter)).map_err(|error| Error(error.to_string()))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines: Box<dyn Layer<_> + Send + Sync> = match config.log_format {
        LogFormat::Text => lines
            .with_ansi(io::stderr().is_terminal())
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let log = tracing_subscriber::registry()
        .with(lines.with_filter(FilterFn::new(is_discreet)))
        .with(filter);
    log.try_init().map_err(|error| Error(error.to_string()))
}

/// What the database has to say of its files is of interest to those only who ask for it.
fn filter(wanted: &str) -> String {
    let quiet = ["fjall", "lsm_tree"]
        .into_iter()
        .filter(|library| !wanted.contains(library));
    let quiet = quiet.map(|library| format!("{library}=warn,"));
    quiet.chain(std::iter::once(wanted.to_owned())).collect()
}

/// What libraries say in detail has the headers of requests in it, hence credentials.
fn is_discreet(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO || metadata.target().starts_with("twinspan")
}

/// Writes a field as text. What it shows may be a peer's words.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    if field.name() != "message" {
        write!(writer, "{field}=")?;
    }
    for part in format!("{value:?}").chars() {
        match is_plain(part) {
            true => writer.write_char(part)?,
            false => write!(writer, "{}", part.escape_default())?,
        }
    }
    Ok(())
}

/// Whether a character stands for itself: one that controls a terminal, ends a line or turns the direction of the text does
/// not.
fn is_plain(part: char) -> bool {
    let turns = matches!(part, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let breaks = matches!(part, '\u{2028}' | '\u{2029}');
    !part.is_control() && !turns && !breaks
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_peers_say_cannot_forge_a_line() {
        let lines = Lines::default();
        let made = lines.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || made.clone())
            .with_ansi(false)
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .finish();
        let evil = "x\r\n2026-01-01 ERROR forged \u{1b}[2J\u{7}\u{9b}\u{202e}\u{2028}";
        tracing::subscriber::with_default(log, || {
            tracing::info!(client = %evil, other = ?evil, plain = "é€😀", number = 7, "hello {evil}");
            let span = tracing::info_span!("call", name = %evil);
            let _inside = span.enter();
            tracing::warn!("in a span");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2, "{text:?}");
        let raw = text.chars().find(|part| *part != '\n' && !is_plain(*part));
        assert_eq!(raw, None, "{text:?}");
        assert!(text.contains("plain=\"é€😀\" number=7"), "{text}");
        assert!(
            text.contains(r"client=x\r\n2026-01-01 ERROR forged \u{1b}[2J\u{7}"),
            "{text}"
        );
    }
}
