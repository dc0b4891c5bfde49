//! `twinspan check`: whether a data directory is as it was written, and what can be done if it is not.

use std::path::Path;
use std::time::SystemTime;

use clap::Args;
use serde_json::{Value, json};

use super::settings::Settings;
use super::{Failure, output};
use crate::config::Config;
use crate::log::{self, Finding, Findings, Report};
use crate::router;

/// `twinspan check`.
#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    settings: Settings,
    /// Put what can be read in the place of what is damaged, which is kept beside it
    #[arg(long)]
    repair: bool,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    pub fn run(self) -> Result<(), Failure> {
        let dir = self.settings.load(Config::default())?.data_dir;
        let checked = match self.repair {
            true => log::repair(&dir, &saved()),
            false => log::check(&dir),
        };
        // A directory that is in use, or is none, is not one that was found to be damaged.
        let report = checked.map_err(|error| Failure::new(Failure::USAGE, error))?;
        match self.json {
            true => output::line(&as_json(&report).to_string())?,
            false => output::foreign(&text(&dir, &report, self.repair))?,
        }
        match report.is_sound() {
            true => Ok(()),
            // What is wrong was printed.
            false => Err(Failure::new(Failure::REFUSED, "")),
        }
    }
}

fn saved() -> log::Saved<'static> {
    #[allow(
        clippy::disallowed_methods,
        reason = "the command is no part of a gateway, and has no other clock"
    )]
    let now = SystemTime::now();
    log::Saved {
        data: Box::new(move || router::unknown(&router::random_name(), now)),
        epoch: router::random_name().to_string(),
        now,
    }
}

fn text(dir: &Path, report: &Report, may_repair: bool) -> String {
    let mut text = String::new();
    if let Some(repaired) = &report.repaired {
        text += &format!("repaired; what was there before is in {}\n", repaired.aside.display());
        text += &list(&repaired.dropped);
        if repaired.dropped.shown.iter().any(|finding| finding.file.is_some()) {
            text +=
                "what was newest in a session may be missing without a trace, if it was in what could not be read\n";
        }
        text.push('\n');
    }
    text += &output::table(&rows(dir, report));
    if let Some(torn) = &report.torn {
        text += &format!(
            "the last write was not finished, and is cut off at the next start: {}, at byte {}, {} bytes\n",
            torn.file.display(),
            torn.offset,
            torn.bytes
        );
    }
    match (report.is_sound(), may_repair && report.repaired.is_none()) {
        (true, false) => text += "nothing is wrong\n",
        (true, true) => text += "nothing is wrong, and nothing was changed\n",
        (false, _) => {
            text += "\n";
            text += &list(&report.findings);
            if !report.is_read {
                text += "the sessions were not read: the files must be whole for that\n";
            }
            text += remedies(&report.findings).as_str();
        }
    }
    text
}

fn rows(dir: &Path, report: &Report) -> Vec<[String; 2]> {
    let mut rows = vec![["directory".to_owned(), dir.display().to_string()]];
    let counts = [
        ("sessions", report.sessions, report.is_read),
        ("frames", report.frames, report.is_read),
        ("records", report.records, report.is_read),
        ("notes", report.notes, report.is_read),
        ("journals", report.journals, true),
        ("tables", report.tables, true),
        ("bytes", report.bytes, true),
        ("findings", report.findings.count, true),
    ];
    rows.extend(counts.map(|(what, count, is_known)| {
        let count = if is_known {
            count.to_string()
        } else {
            output::NOTHING.to_owned()
        };
        [what.to_owned(), count]
    }));
    rows
}

fn list(findings: &Findings) -> String {
    let mut text: String = findings.shown.iter().map(|finding| format!("{finding}\n")).collect();
    let more = findings.count - findings.shown.len() as u64;
    if more > 0 {
        text += &format!("and {more} more\n");
    }
    text
}

/// What can be done, each said once.
fn remedies(findings: &Findings) -> String {
    let mut remedies: Vec<_> = findings.shown.iter().map(|finding| finding.remedy).collect();
    remedies.sort_unstable();
    remedies.dedup();
    remedies.iter().map(|remedy| format!("{remedy}\n")).collect()
}

fn as_json(report: &Report) -> Value {
    let torn = report.torn.as_ref();
    json!({
        "sound": report.is_sound(),
        "read": report.is_read,
        "sessions": report.sessions,
        "frames": report.frames,
        "records": report.records,
        "notes": report.notes,
        "journals": report.journals,
        "tables": report.tables,
        "bytes": report.bytes,
        "torn": torn.map(|torn| json!({ "file": torn.file, "offset": torn.offset, "bytes": torn.bytes })),
        "findings": findings_json(&report.findings),
        "repaired": report.repaired.as_ref().map(|repaired| json!({
            "aside": repaired.aside,
            "dropped": findings_json(&repaired.dropped),
        })),
    })
}

fn findings_json(findings: &Findings) -> Value {
    let shown: Vec<_> = findings.shown.iter().map(finding_json).collect();
    json!({ "count": findings.count, "shown": shown })
}

fn finding_json(finding: &Finding) -> Value {
    json!({
        "file": finding.file,
        "offset": finding.offset,
        "session": finding.session.as_deref(),
        "number": finding.number,
        "seq": finding.seq,
        "what": finding.what,
        "remedy": finding.remedy,
    })
}
