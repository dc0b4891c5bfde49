//! Chunks of one reply whose text is kept as one, and where each of them ended.
//!
//! Owns that any stretch of them can be read by itself, at the cost of a frame's header.

use std::sync::Arc;

use prost_types::Timestamp;

use crate::frame::{Body, Frame, Run, Sealed, Str};

/// Chunks of one reply. Their seqs are the store's to know.
#[derive(Debug)]
pub struct Folded {
    all: Arc<Sealed>,
    text: Str,
    chunks: Box<[Chunk]>,
}

/// What is left of a chunk.
#[derive(Debug)]
pub struct Chunk {
    /// The chunk's own.
    pub timestamp: Timestamp,
    /// The chunk's own.
    pub index: u32,
    /// Where its text ends, in all of it.
    pub end: u32,
}

impl Folded {
    /// Folds a run; nothing if there is nothing to gain, or if its chunks lack what the gateway writes on every reply.
    pub fn new(mut run: Run) -> Option<Self> {
        let mut end = 0;
        let chunks = run
            .frames()
            .iter()
            .map(|frame| {
                end += frame.chunk_text().map_or(0, |text| text.len()) as u32;
                Some(Chunk {
                    timestamp: frame.timestamp?,
                    index: frame.index?,
                    end,
                })
            })
            .collect::<Option<Box<[_]>>>()?;
        let all = run.drain(2).next().filter(|_| chunks.len() > 1)?;
        // The last chunk's own text is not to be kept for the sake of its header.
        let all = Frame {
            reply_to: all.reply_to.detached(),
            r#type: all.r#type.detached(),
            ..all.frame().clone()
        };
        Self::from_parts(all, chunks)
    }

    /// Of the frame that stands for all of the chunks, and what is left of each; nothing if that does not cut the frame's text
    /// into several, each of them text.
    pub fn from_parts(all: Frame, chunks: Box<[Chunk]>) -> Option<Self> {
        let text = all.chunk_text()?.clone();
        let mut start = 0;
        let is_cut = chunks.iter().all(|chunk| {
            let before = std::mem::replace(&mut start, chunk.end);
            before <= chunk.end && text.is_char_boundary(chunk.end as usize)
        });
        (is_cut && chunks.len() > 1 && start as usize == text.len()).then(|| Self {
            all: Arc::new(Sealed::new(all)),
            text,
            chunks,
        })
    }

    /// How many chunks these are.
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// When this chunk was said.
    pub fn timestamp(&self, chunk: usize) -> Timestamp {
        self.chunks[chunk].timestamp
    }

    /// About how many bytes of memory this takes.
    pub fn size(&self) -> usize {
        self.all.size() + size_of::<Self>() + size_of_val(&*self.chunks)
    }

    /// So many chunks, which follow each other in the log, beginning with this one, which has the seq.
    pub fn stretch(&self, first: usize, count: usize, seq: u64) -> Arc<Sealed> {
        if count == self.chunks.len() {
            return Arc::clone(&self.all);
        }
        let last = &self.chunks[first + count - 1];
        let start = first.checked_sub(1).map_or(0, |before| self.chunks[before].end);
        let text = &self.text[start as usize..last.end as usize];
        Arc::new(Sealed::new(Frame {
            seq: seq + count as u64 - 1,
            folded_from: if count > 1 { seq } else { 0 },
            timestamp: Some(last.timestamp),
            index: Some(last.index),
            body: Body::Text(self.text.slice_of(text)),
            ..self.all.frame().clone()
        }))
    }
}
