//! What the log costs: the disk store and the memory store, and beside them the database used alone with the same batching.
//!
//! `cargo bench --bench log -- append|paced|replay|open|all [--seconds 10] [--dir DIR]`. Each number is printed with what it is
//! of; bytes written are those that the kernel counts for this process (/proc/self/io), compactions included.

#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a bench has clocks of its own, and ends if anything fails"
)]

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use clap::{Parser, Subcommand};
use fjall::{Database, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tokio::runtime::Runtime;
use twinspan::frame::{Body, Frame, Sealed, Str};
use twinspan::log::{Commit, Disk, Durability, Entry, Keep, Limit, Log, Memory, Retention, Settings};

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    what: What,
    /// How long each run takes.
    #[arg(long, global = true, default_value_t = 10)]
    seconds: u64,
    /// Where the data goes, and is removed from afterwards.
    #[arg(long, global = true, default_value = "target/bench-log")]
    dir: PathBuf,
    /// Passed by cargo.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Subcommand, PartialEq, Eq)]
enum What {
    /// Acked appends a second, and CPU and bytes written for each.
    Append,
    /// Ack latency at a steady 10,000 appends a second.
    Paced,
    /// 10,000 sessions of 100 frames read while writes go on.
    Replay,
    /// How long it takes to open a gigabyte of log.
    Open,
    /// All of these.
    All,
}

/// Appends that are not acked yet, of all together.
const WINDOW: u64 = 8_192;
const PACE: u64 = 10_000;

fn main() {
    let options = Options::parse();
    let runtime = Runtime::new().unwrap();
    let is = |what| options.what == what || options.what == What::All;
    if is(What::Append) {
        append(&options, &runtime);
    }
    if is(What::Paced) {
        paced(&options, &runtime);
    }
    if is(What::Replay) {
        replay(&options, &runtime);
    }
    if is(What::Open) {
        open_large(&options, &runtime);
    }
    fs::remove_dir_all(&options.dir).ok();
}

/// Something that takes appends, and acks them.
trait Store {
    /// The next append, of the session; the seq is the caller's.
    fn append(&self, session: usize, seq: u64);
    /// How many were acked.
    fn acked(&self) -> u64;
}

struct Stored {
    log: Arc<dyn Log>,
    names: Vec<Str>,
    body: Str,
    acked: Arc<AtomicU64>,
}

impl Stored {
    fn new(log: Arc<dyn Log>, sessions: usize, size: usize, runtime: &Runtime) -> Self {
        let names: Vec<Str> = (0..sessions).map(|at| Str::from(format!("session-{at}"))).collect();
        for name in &names {
            log.create(name, Bytes::from_static(b"data"), 1).unwrap();
        }
        let acked = Arc::new(AtomicU64::new(0));
        let (mut settlements, count) = (log.settlements(), Arc::clone(&acked));
        runtime.spawn(async move {
            let mut heads = std::collections::HashMap::new();
            while let Some(settled) = settlements.next().await {
                for settled in settled {
                    settled.result.unwrap();
                    let head = heads.entry(settled.life).or_insert(0);
                    count.fetch_add(settled.seq - *head, Ordering::Release);
                    *head = settled.seq;
                }
            }
        });
        Self {
            log,
            names,
            body: noise(size),
            acked,
        }
    }
}

impl Store for Stored {
    fn append(&self, session: usize, seq: u64) {
        let frame = Frame {
            seq,
            session_id: self.names[session].clone(),
            timestamp: Some(SystemTime::now().into()),
            body: Body::Text(self.body.clone()),
            ..Frame::default()
        };
        let entry = Entry::from(Arc::new(Sealed::new(frame)));
        loop {
            match self.log.append(&self.names[session], entry.clone()) {
                Ok(appended) => {
                    if appended.commit == Commit::Done {
                        self.acked.fetch_add(1, Ordering::Release);
                    }
                    return;
                }
                Err(error) => {
                    eprintln!("waits: {error:?}");
                    thread::sleep(Duration::from_millis(10));
                }
            }
        }
    }

    fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }
}

/// The database with nothing around it: one writer that takes what has queued, syncs, and acks.
struct Alone {
    queue: Arc<(Mutex<VecDeque<[u8; 16]>>, Condvar)>,
    acked: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    writer: Option<thread::JoinHandle<()>>,
}

impl Alone {
    fn new(dir: &Path, size: usize) -> Self {
        let db = Database::builder(dir)
            .manual_journal_persist(true)
            .max_journaling_size(192 << 20)
            .journal_compression(fjall::CompressionType::None)
            .open()
            .unwrap();
        let options = || KeyspaceCreateOptions::default().max_memtable_size(32 << 20);
        let frames = db.keyspace("frames", options).unwrap();
        let queue = Arc::new((Mutex::new(VecDeque::new()), Condvar::new()));
        let (acked, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (waiting, count, over) = (Arc::clone(&queue), Arc::clone(&acked), Arc::clone(&is_over));
        let body = noise(size);
        let writer = thread::spawn(move || {
            while !over.load(Ordering::Acquire) {
                let mut queue = waiting.0.lock().unwrap();
                if queue.is_empty() {
                    queue = waiting.1.wait_timeout(queue, Duration::from_millis(10)).unwrap().0;
                }
                let keys: Vec<[u8; 16]> = queue.drain(..).collect();
                drop(queue);
                for keys in keys.chunks(4_096) {
                    let batch = OwnedWriteBatch::with_capacity(db.clone(), keys.len());
                    let mut batch = batch.durability(Some(PersistMode::SyncData));
                    for key in keys {
                        batch.insert(&frames, *key, body.as_str());
                    }
                    batch.commit().unwrap();
                    count.fetch_add(keys.len() as u64, Ordering::Release);
                }
            }
        });
        Self {
            queue,
            acked,
            is_over,
            writer: Some(writer),
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Release);
        self.writer.take().unwrap().join().unwrap();
    }
}

impl Store for Alone {
    fn append(&self, session: usize, seq: u64) {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&(session as u64).to_be_bytes());
        key[8..].copy_from_slice(&seq.to_be_bytes());
        self.queue.0.lock().unwrap().push_back(key);
        self.queue.1.notify_one();
    }

    fn acked(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }
}

/// Text that does not compress to nothing.
fn noise(size: usize) -> Str {
    let mut random = Random(7);
    let letters = (0..size).map(|_| char::from(b' ' + random.below(94) as u8));
    Str::from(letters.collect::<String>())
}

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn fresh(options: &Options) -> PathBuf {
    fs::remove_dir_all(&options.dir).ok();
    options.dir.clone()
}

fn disk(dir: &Path, durability: Durability) -> Disk {
    let settings = Settings {
        dir: dir.to_owned(),
        durability,
        keep: Keep {
            age: Duration::from_secs(1 << 30),
            frames: usize::MAX / 2,
            bytes: usize::MAX / 2,
        },
        min_free_bytes: 1,
        queue_bytes: 256 << 20,
        cache_bytes: 64 << 20,
        epoch: "another-life".to_owned(),
    };
    Disk::open(settings).unwrap().0
}

fn memory() -> Memory {
    Memory::new(Retention {
        age: Duration::from_secs(1 << 30),
        frames: 1_000,
        bytes: 16 << 20,
        total_bytes: 4 << 30,
    })
}

struct Usage {
    at: Instant,
    cpu: Duration,
    written: u64,
}

impl Usage {
    fn now() -> Self {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        let io = fs::read_to_string("/proc/self/io").unwrap();
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap();
        Self {
            at: Instant::now(),
            cpu: Duration::from_micros(micros as u64),
            written: written.parse().unwrap(),
        }
    }
}

/// Appends as fast as it can, in random order of sessions.
fn run(store: &dyn Store, sessions: usize, seconds: u64) -> (f64, f64, f64) {
    let mut random = Random(1);
    let mut heads = vec![0_u64; sessions];
    let mut sent = 0;
    let begun = Usage::now();
    while begun.at.elapsed() < Duration::from_secs(seconds) {
        if sent - store.acked() >= WINDOW {
            thread::sleep(Duration::from_micros(100));
            continue;
        }
        for _ in 0..256 {
            let session = random.below(sessions as u64) as usize;
            heads[session] += 1;
            store.append(session, heads[session]);
            sent += 1;
        }
    }
    while store.acked() < sent {
        thread::sleep(Duration::from_micros(100));
    }
    let over = Usage::now();
    let count = sent as f64;
    (
        count / (over.at - begun.at).as_secs_f64(),
        (over.cpu - begun.cpu).as_secs_f64() * 1e6 / count,
        (over.written - begun.written) as f64 / count,
    )
}

fn append(options: &Options, runtime: &Runtime) {
    println!(
        "{:>8} {:>9} {:>9}   acked/s   CPU us   bytes written per byte",
        "store", "body", "sessions"
    );
    for size in [256, 4_096] {
        for sessions in [1, 10_000] {
            let mut alone = 0.0;
            for store in ["alone", "durable", "relaxed", "memory"] {
                let dir = fresh(options);
                let made: Box<dyn Store> = match store {
                    "alone" => Box::new(Alone::new(&dir, size)),
                    "memory" => Box::new(Stored::new(Arc::new(memory()), sessions, size, runtime)),
                    "durable" => {
                        let log = Arc::new(disk(&dir, Durability::Durable));
                        Box::new(Stored::new(log, sessions, size, runtime))
                    }
                    _ => {
                        let log = Arc::new(disk(&dir, Durability::Relaxed));
                        Box::new(Stored::new(log, sessions, size, runtime))
                    }
                };
                let (rate, cpu, written) = run(&*made, sessions, options.seconds);
                if store == "alone" {
                    alone = rate;
                }
                println!(
                    "{store:>8} {size:>9} {sessions:>9} {rate:>9.0} {cpu:>8.2} {:>8.2}   {:.0} % of the database alone",
                    written / size as f64,
                    rate * 100.0 / alone
                );
            }
        }
    }
}

fn paced(options: &Options, runtime: &Runtime) {
    println!(
        "{:>8}   p50 ms   p99 ms   CPU us   at {PACE} appends a second, 1,000 sessions, 256 B",
        "store"
    );
    for store in ["alone", "durable", "relaxed"] {
        let dir = fresh(options);
        let made: Box<dyn Store> = match store {
            "alone" => Box::new(Alone::new(&dir, 256)),
            "durable" => Box::new(Stored::new(
                Arc::new(disk(&dir, Durability::Durable)),
                1_000,
                256,
                runtime,
            )),
            _ => Box::new(Stored::new(
                Arc::new(disk(&dir, Durability::Relaxed)),
                1_000,
                256,
                runtime,
            )),
        };
        let (mut random, mut heads) = (Random(1), vec![0_u64; 1_000]);
        let (mut sent, mut acked) = (VecDeque::new(), 0);
        let mut latencies = Vec::new();
        let begun = Usage::now();
        let mut count = 0;
        while begun.at.elapsed() < Duration::from_secs(options.seconds) {
            let due = begun.at.elapsed().as_micros() as u64 * PACE / 1_000_000;
            while count < due {
                let session = random.below(1_000) as usize;
                heads[session] += 1;
                sent.push_back(Instant::now());
                made.append(session, heads[session]);
                count += 1;
            }
            // Acks come in the order of the appends, but for sessions of one batch.
            let now = made.acked();
            for _ in acked..now {
                latencies.push(sent.pop_front().unwrap().elapsed());
            }
            acked = now;
            thread::sleep(Duration::from_micros(50));
        }
        let cpu = (Usage::now().cpu - begun.cpu).as_secs_f64() * 1e6 / count as f64;
        latencies.sort_unstable();
        let at = |part: f64| latencies[(latencies.len() as f64 * part) as usize].as_secs_f64() * 1e3;
        println!("{store:>8} {:>8.2} {:>8.2} {cpu:>8.2}", at(0.5), at(0.99));
    }
}

/// Many sessions of a hundred frames each.
fn fill(log: &Arc<Disk>, sessions: usize, frames: u64, runtime: &Runtime) -> Stored {
    let stored = Stored::new(Arc::clone(log) as Arc<dyn Log>, sessions, 256, runtime);
    let mut sent = 0;
    for seq in 1..=frames {
        for session in 0..sessions {
            while sent - stored.acked() >= WINDOW {
                thread::sleep(Duration::from_micros(100));
            }
            stored.append(session, seq);
            sent += 1;
        }
    }
    while stored.acked() < sent {
        thread::sleep(Duration::from_millis(1));
    }
    stored
}

fn replay(options: &Options, runtime: &Runtime) {
    let dir = fresh(options);
    let log = Arc::new(disk(&dir, Durability::Durable));
    let stored = Arc::new(fill(&log, 10_000, 100, runtime));
    let is_over = Arc::new(AtomicBool::new(false));
    let writing = {
        let (stored, is_over) = (Arc::clone(&stored), Arc::clone(&is_over));
        let before = stored.acked();
        thread::spawn(move || {
            let begun = Instant::now();
            let (mut count, mut seq) = (0_u64, 100);
            while !is_over.load(Ordering::Acquire) {
                seq += 1;
                for session in 0..10_000 {
                    stored.append(session, seq);
                    count += 1;
                    while begun.elapsed().as_micros() as u64 * PACE / 1_000_000 < count {
                        thread::sleep(Duration::from_millis(1));
                        if is_over.load(Ordering::Acquire) {
                            return (stored.acked() - before) as f64 / begun.elapsed().as_secs_f64();
                        }
                    }
                }
            }
            0.0
        })
    };
    let begun = Usage::now();
    let page = Limit {
        frames: 100,
        bytes: usize::MAX,
    };
    let read = runtime.block_on(async {
        let mut read = 0;
        // As many at once as there are likely to be joins at once.
        for names in stored.names.chunks(64) {
            let pages = names.iter().map(|name| log.read(name, 1, page));
            for page in futures_util::future::join_all(pages).await {
                read += page.unwrap().frames.len();
            }
        }
        read
    });
    let over = Usage::now();
    is_over.store(true, Ordering::Release);
    let rate = writing.join().unwrap();
    let seconds = (over.at - begun.at).as_secs_f64();
    println!(
        "replay: {read} frames of 10,000 sessions in {seconds:.2} s ({:.0} a second), while {rate:.0} appends a second were acked",
        read as f64 / seconds
    );
}

fn open_large(options: &Options, runtime: &Runtime) {
    let dir = fresh(options);
    let log = Arc::new(disk(&dir, Durability::Durable));
    drop(fill(&log, 10_000, 640, runtime));
    let bytes = log.disk_bytes().unwrap();
    runtime.block_on(log.close()).unwrap();
    drop(log);
    for run in 1..=3 {
        let begun = Instant::now();
        let log = disk(&dir, Durability::Durable);
        let opened = begun.elapsed();
        let known = runtime.block_on(async {
            let mut after = Str::EMPTY;
            let mut count = 0;
            loop {
                let page = log.list("", &after, 500).await.unwrap();
                count += page.len();
                match page.last() {
                    Some(last) => after = last.session.clone(),
                    None => break count,
                }
            }
        });
        println!(
            "open {run}: {} MB of log, opened in {:.0} ms, {known} sessions listed after {:.0} ms",
            bytes / 1_000_000,
            opened.as_secs_f64() * 1e3,
            begun.elapsed().as_secs_f64() * 1e3
        );
    }
}
