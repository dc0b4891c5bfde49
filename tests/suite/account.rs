//! What a reader was told of a session, held against the contract as it comes: nothing twice, nothing left out, one end.

use std::collections::BTreeMap;

use twinspan::frame::{Body, Control, Frame};

use crate::harness::control;

/// A session as one reader was told of it, frame by frame, folded or not.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// The epoch in which it was told.
    pub epoch: String,
    /// The last seq that it has, which is where to resume.
    pub head: u64,
    pub answers: BTreeMap<String, Answer>,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The text of each attempt, as far as it came.
    pub attempts: Vec<String>,
    /// How many chunks of the last attempt there were, its final reply included.
    pub chunks: u32,
    pub end: Option<End>,
}

/// How an answer ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Answered,
    /// With this reason.
    Failed(String),
}

impl Default for Answer {
    fn default() -> Self {
        Self {
            attempts: vec![String::new()],
            chunks: 0,
            end: None,
        }
    }
}

impl Account {
    /// All of a log.
    pub fn of<'a>(frames: impl IntoIterator<Item = &'a Frame>) -> Self {
        let mut account = Self::default();
        for frame in frames {
            account.note(frame);
        }
        account
    }

    /// Takes in a frame of the session.
    pub fn note(&mut self, frame: &Frame) {
        match control(frame) {
            Some(Control::Joined(joined)) => {
                assert!(
                    self.epoch.is_empty() || self.epoch == joined.epoch,
                    "another log: {frame:?}"
                );
                self.epoch.clone_from(&joined.epoch);
            }
            Some(Control::Gap(_)) => panic!("nothing was trimmed, and yet: {frame:?}"),
            _ => {}
        }
        if frame.seq == 0 {
            return;
        }
        let first = if frame.folded_from > 0 {
            frame.folded_from
        } else {
            frame.seq
        };
        assert_eq!(first, self.head + 1, "told of {} before: {frame:?}", self.head);
        assert!(first <= frame.seq, "{frame:?}");
        self.head = frame.seq;
        if frame.reply_to.is_empty() {
            let other = self.answers.insert(frame.id.to_string(), Answer::default());
            assert_eq!(other, None, "asked before: {frame:?}");
            return;
        }
        let answer = self.answers.get_mut(frame.reply_to.as_str());
        answer
            .unwrap_or_else(|| panic!("nobody asked: {frame:?}"))
            .note(frame, frame.seq - first + 1);
    }
}

impl Answer {
    fn note(&mut self, frame: &Frame, count: u64) {
        assert_eq!(self.end, None, "it was over before: {frame:?}");
        if let Some(Control::Restarted(_)) = control(frame) {
            self.attempts.push(String::new());
            self.chunks = 0;
            assert!(!frame.last && count == 1, "{frame:?}");
            assert_eq!(frame.attempt as usize, self.attempts.len(), "{frame:?}");
            return;
        }
        // The end of a request that no worker has is of no attempt.
        if frame.attempt > 0 {
            assert_eq!(
                frame.attempt as usize,
                self.attempts.len(),
                "of another attempt: {frame:?}"
            );
            self.chunks += count as u32;
            assert_eq!(frame.index, Some(self.chunks - 1), "counted otherwise: {frame:?}");
        }
        match &frame.body {
            Body::Text(text) => {
                assert!(frame.attempt > 0, "{frame:?}");
                self.attempts.last_mut().unwrap().push_str(text);
            }
            Body::Error(error) => {
                assert!(frame.last && count == 1, "{frame:?}");
                self.end = Some(End::Failed(error.reason.clone()));
                return;
            }
            other => panic!("no answer: {other:?}"),
        }
        if frame.last {
            assert_eq!(count, 1, "an end is not folded: {frame:?}");
            self.end = Some(End::Answered);
        }
    }

    /// How many restarts there were.
    pub fn restarts(&self) -> usize {
        self.attempts.len() - 1
    }
}
