//! What a frame is to say, from the command line.

use std::io::Read;

use clap::Args;

use super::Failure;
use crate::frame::{Body, Payload, Str};

/// One of the two, or neither.
#[derive(Clone, Debug, Args)]
#[group(multiple = false)]
pub struct Said {
    /// A payload: any JSON value; - reads it from stdin
    #[arg(long)]
    json: Option<String>,
    /// A text; - reads it from stdin
    #[arg(long)]
    text: Option<String>,
}

impl Said {
    /// The body, if there is one.
    pub fn body(self) -> Result<Option<Body>, Failure> {
        match self {
            Self { json: Some(json), .. } => payload(or_stdin(json)?).map(Some),
            Self { text: Some(text), .. } => Ok(Some(Body::Text(or_stdin(text)?.into()))),
            Self { .. } => Ok(None),
        }
    }

    /// The body; from stdin, as text, if nothing else is said.
    pub fn body_or_stdin(self) -> Result<Body, Failure> {
        match self.body()? {
            Some(body) => Ok(body),
            None => Ok(Body::Text(stdin()?.into())),
        }
    }
}

fn payload(json: String) -> Result<Body, Failure> {
    let refused = |refusal: crate::error::Refusal| Failure::new(Failure::USAGE, format!("--json: {}", refusal.message));
    Payload::from_json_text(Str::from(json))
        .map(Body::Payload)
        .map_err(refused)
}

fn or_stdin(given: String) -> Result<String, Failure> {
    if given == "-" { stdin() } else { Ok(given) }
}

fn stdin() -> Result<String, Failure> {
    let mut text = String::new();
    match std::io::stdin().read_to_string(&mut text) {
        Ok(_) => Ok(text.strip_suffix('\n').map(str::to_owned).unwrap_or(text)),
        Err(error) => Err(Failure::new(Failure::USAGE, format!("stdin cannot be read: {error}"))),
    }
}
