//! Folding: text chunks of one reply, one after the other, as one frame.
//!
//! Owns what can be folded with what, and what comes of it. It must never decide where folding is worth it.

use std::sync::Arc;
use std::vec::Drain;

use super::{Body, Frame, Sealed, Str};

/// Bytes of text of one folded frame: even with every byte escaped in JSON, it is smaller than the largest frame that a peer
/// has to be ready for.
pub const FOLDED_BYTES: usize = 64 << 10;

/// Frames in the order in which somebody sees them, forwards or backwards, which one frame can stand for; or any one frame.
#[derive(Debug, Default)]
pub struct Run {
    frames: Vec<Arc<Sealed>>,
    bytes: usize,
}

impl Run {
    /// Whether the frame, the next that is seen, can be folded with those that are there.
    pub fn takes(&self, frame: &Frame) -> bool {
        self.frames.first().is_none_or(|first| {
            first.joins(frame) && self.bytes + frame.chunk_text().map_or(0, |text| text.len()) <= FOLDED_BYTES
        })
    }

    /// Adds a frame that the run takes.
    pub fn push(&mut self, frame: Arc<Sealed>) {
        self.bytes += frame.chunk_text().map_or(0, |text| text.len());
        self.frames.push(frame);
    }

    /// The frames.
    pub fn frames(&self) -> &[Arc<Sealed>] {
        &self.frames
    }

    /// Begins anew: gives out the frames, or one for them all if there are at least so many.
    pub fn drain(&mut self, least: usize) -> Drain<'_, Arc<Sealed>> {
        if self.frames.len() >= least.max(2) {
            let folded = self.folded();
            self.frames.clear();
            self.frames.push(Arc::new(folded));
        }
        self.bytes = 0;
        self.frames.drain(..)
    }

    fn folded(&mut self) -> Sealed {
        let is_backwards = matches!(&*self.frames, [one, .., other] if one.seq > other.seq);
        if is_backwards {
            self.frames.reverse();
        }
        let mut text = String::with_capacity(self.bytes);
        for part in self.frames.iter().filter_map(|frame| frame.chunk_text()) {
            text.push_str(part);
        }
        let first = self.frames.first().map_or(0, |first| first.first_seq());
        let last = self.frames.last().map(|last| last.frame().clone());
        Sealed::new(Frame {
            id: Str::EMPTY,
            folded_from: first,
            body: Body::Text(text.into()),
            ..last.unwrap_or_default()
        })
    }
}

impl Frame {
    /// The seq of the first frame that this one stands for: its own, unless it is folded.
    pub fn first_seq(&self) -> u64 {
        match self.folded_from {
            0 => self.seq,
            folded_from => folded_from,
        }
    }

    /// The text of a frame that can be folded: a chunk of a reply, in the log, that says nothing else.
    pub fn chunk_text(&self) -> Option<&Str> {
        let is_chunk = self.seq > 0
            && !self.reply_to.is_empty()
            && !self.last
            && self.to.is_none()
            && self.options.is_none()
            && self.metadata.is_none();
        match &self.body {
            Body::Text(text) if is_chunk => Some(text),
            _ => None,
        }
    }

    /// Whether both are chunks of one reply. The ids of chunks concern nobody but their sender.
    pub fn joins(&self, other: &Self) -> bool {
        self.reply_to == other.reply_to
            && self.attempt == other.attempt
            && self.r#type == other.r#type
            && self.from == other.from
            && self.chunk_text().is_some()
            && other.chunk_text().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::pb;

    fn chunk(seq: u64, text: &str) -> Frame {
        Frame {
            id: seq.to_string().into(),
            session_id: "s".into(),
            seq,
            timestamp: Some(prost_types::Timestamp {
                seconds: seq as i64,
                nanos: 0,
            }),
            reply_to: "q".into(),
            attempt: 1,
            index: Some(seq as u32 - 1),
            from: Some(Arc::new(pb::Address {
                role: "brain".to_owned(),
                ..pb::Address::default()
            })),
            body: Body::Text(text.into()),
            ..Frame::default()
        }
    }

    /// What a reader gets who has runs of at least two folded.
    fn fold(frames: impl IntoIterator<Item = Frame>) -> Vec<Arc<Sealed>> {
        let mut run = Run::default();
        let mut out = Vec::new();
        for frame in frames {
            if !run.takes(&frame) {
                out.extend(run.drain(2));
            }
            run.push(Arc::new(frame.into()));
        }
        out.extend(run.drain(2));
        out
    }

    fn texts(frames: &[Arc<Sealed>]) -> Vec<&str> {
        frames
            .iter()
            .filter_map(|frame| frame.chunk_text())
            .map(Str::as_str)
            .collect()
    }

    #[test]
    fn the_last_chunk_speaks_for_all() {
        let folded = fold([chunk(3, "a"), chunk(5, ""), chunk(9, "ü")]);
        let want = Frame {
            id: Str::EMPTY,
            folded_from: 3,
            body: Body::Text("aü".into()),
            ..chunk(9, "")
        };
        assert_eq!(folded.len(), 1);
        assert_eq!(*folded[0].frame(), want);

        let backwards = fold([chunk(9, "ü"), chunk(5, ""), chunk(3, "a")]);
        assert_eq!(*backwards[0].frame(), want);

        let again = fold([want, chunk(10, "!")]);
        assert_eq!(
            (again[0].first_seq(), again[0].seq, texts(&again)),
            (3, 10, vec!["aü!"])
        );
    }

    #[test]
    fn one_alone_stays_as_it_is() {
        let only = Arc::new(Sealed::new(chunk(1, "x")));
        let mut run = Run::default();
        run.push(Arc::clone(&only));
        assert!(run.drain(0).all(|frame| Arc::ptr_eq(&frame, &only)));
    }

    #[test]
    fn runs_shorter_than_asked_for_stay_as_they_are() {
        let mut run = Run::default();
        (1..=3).for_each(|seq| run.push(Arc::new(chunk(seq, "x").into())));
        assert_eq!(run.drain(4).len(), 3);
        (1..=4).for_each(|seq| run.push(Arc::new(chunk(seq, "x").into())));
        assert_eq!(run.drain(4).len(), 1);
    }

    #[test]
    fn only_plain_chunks_of_one_reply_fold() {
        let others = [
            Frame {
                reply_to: "r".into(),
                ..chunk(2, "")
            },
            Frame {
                reply_to: Str::EMPTY,
                ..chunk(2, "")
            },
            Frame {
                attempt: 2,
                ..chunk(2, "")
            },
            Frame {
                r#type: "thought".into(),
                ..chunk(2, "")
            },
            Frame {
                from: None,
                ..chunk(2, "")
            },
            Frame {
                last: true,
                ..chunk(2, "")
            },
            Frame { seq: 0, ..chunk(2, "") },
            Frame {
                to: Some(Arc::default()),
                ..chunk(2, "")
            },
            Frame {
                metadata: Some(Box::default()),
                ..chunk(2, "")
            },
            Frame {
                body: Body::None,
                ..chunk(2, "")
            },
        ];
        for other in others {
            let folded = fold([chunk(1, "x"), other.clone(), chunk(3, "y")]);
            assert_eq!(folded.len(), 3, "{other:?}");
            assert_eq!(*folded[1].frame(), other);
        }
    }

    #[test]
    fn folded_text_is_bounded() {
        let half = "x".repeat(FOLDED_BYTES / 2);
        let whole = "y".repeat(FOLDED_BYTES + 1);
        let folded = fold([
            chunk(1, &half),
            chunk(2, &half),
            chunk(3, "z"),
            chunk(4, &whole),
            chunk(5, ""),
        ]);
        let spans: Vec<_> = folded.iter().map(|frame| (frame.folded_from, frame.seq)).collect();
        assert_eq!(spans, [(1, 2), (0, 3), (0, 4), (0, 5)]);
    }
}
