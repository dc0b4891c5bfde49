//! Folding at rest: the chunks of a finished reply, which came one by one, are written again as few records.
//!
//! Only chunks that follow each other become one record: nothing that a reader sees is moved past anything else. Owns what shares
//! a record; what can be folded with what, `frame` says.

use std::ops::Range;
use std::sync::Arc;

use fjall::{OwnedWriteBatch, PersistMode};

use super::base::{self, Base};
use super::record::{self, Place, What};
use super::series::Series;
use crate::frame::{FOLDED_BYTES, Run, Sealed, Str};
use crate::log::Error;

/// A reply whose chunks are to be folded.
pub(super) struct Reply {
    pub series: Arc<Series>,
    pub request: Str,
    pub seqs: Range<u64>,
}

/// What is folded at once.
const BATCH_BYTES: usize = 1 << 20;

/// Chunks that follow each other, and the records that they are in.
#[derive(Default)]
struct Stretch {
    run: Run,
    places: Vec<Place>,
    /// Bytes of their text.
    bytes: usize,
    /// Bytes of the session's records before the first of them.
    offset: u64,
}

/// Folds the chunks of a reply.
pub(super) fn fold(base: &Base, reply: &Reply, durability: PersistMode) -> Result<(), Error> {
    let series = &reply.series;
    let seqs = reply.seqs.start.max(series.first())..reply.seqs.end.min(series.committed() + 1);
    let place = |seq| Place {
        session: series.number,
        seq,
    };
    if seqs.is_empty() {
        return Ok(());
    }
    let mut folding = Folding {
        base,
        durability,
        batch: base.batch(0, Some(durability)),
        bytes: 0,
    };
    let mut stretch = Stretch::default();
    for guard in base.frames.range(place(seqs.start).key()..place(seqs.end).key()) {
        let (key, value) = guard.into_inner().map_err(base::failed)?;
        let place = base::place(&key)?;
        let record = record::read(place, &series.name, &value);
        let record = record.map_err(|error| super::corrupt(&series.name, place, &error))?;
        let Some(chunks) = chunks(&record.what, &reply.request) else {
            folding.close(&mut stretch)?;
            continue;
        };
        let bytes: usize = chunks
            .iter()
            .filter_map(|chunk| chunk.chunk_text())
            .map(|text| text.len())
            .sum();
        if stretch.bytes + bytes > FOLDED_BYTES || chunks.iter().any(|chunk| !stretch.run.takes(chunk)) {
            folding.close(&mut stretch)?;
        }
        stretch.bytes += bytes;
        if stretch.places.is_empty() {
            stretch.offset = record.offset;
        }
        stretch.places.push(place);
        for chunk in chunks {
            stretch.run.push(chunk);
        }
    }
    folding.close(&mut stretch)?;
    folding.write()
}

/// The chunks of the reply that a record holds, if it holds nothing else.
fn chunks(what: &What, request: &str) -> Option<Vec<Arc<Sealed>>> {
    let chunks = match what {
        // Of one with an id, that would be lost, by which it is known when it is sent again.
        What::Frame(frame, None) if frame.id.is_empty() && frame.folded_from == 0 => {
            vec![Arc::new(Sealed::new(frame.clone()))]
        }
        What::Frame(..) => return None,
        What::Chunks { first, folded } => {
            let all = (0..folded.len()).map(|at| folded.stretch(at, 1, first + at as u64));
            all.collect()
        }
    };
    let is_of = |chunk: &Arc<Sealed>| chunk.reply_to == *request && chunk.chunk_text().is_some();
    chunks.iter().all(is_of).then_some(chunks)
}

/// Records in the making.
struct Folding<'a> {
    base: &'a Base,
    durability: PersistMode,
    batch: OwnedWriteBatch,
    bytes: usize,
}

impl Folding<'_> {
    /// The stretch is over: it becomes one record, if it is in more.
    fn close(&mut self, stretch: &mut Stretch) -> Result<(), Error> {
        let Stretch {
            run, places, offset, ..
        } = std::mem::take(stretch);
        let Some((last, others)) = places.split_last().filter(|(_, others)| !others.is_empty()) else {
            return Ok(());
        };
        let mut value = Vec::new();
        let written = record::write_chunks(&mut value, *last, offset, run.frames());
        written.map_err(|what| Error::Unavailable(what.to_string()))?;
        self.bytes += value.len();
        self.batch.insert(&self.base.frames, last.key(), value);
        for place in others {
            self.batch.remove(&self.base.frames, place.key());
        }
        if self.bytes > BATCH_BYTES {
            self.write()?;
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), Error> {
        self.bytes = 0;
        let next = self.base.batch(0, Some(self.durability));
        std::mem::replace(&mut self.batch, next).commit().map_err(base::failed)
    }
}
