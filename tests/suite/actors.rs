//! Peers that play a part of their own accord, each in a process of its own, which can be killed and stopped; or in this one.
//!
//! There is one session for each place at which an answer of `CHUNKS` chunks can be interrupted, with one request in each.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::sync::mpsc;
use twinspan::frame::{Control, Frame, Rules, Str, Types, pb};

use crate::account::{Account, Answer, End};
use crate::harness::*;

/// Chunks of an answer, before its final reply.
pub const CHUNKS: usize = 50;
/// So many of them may have been sent: none, some, or all.
pub const PLACES: usize = CHUNKS + 1;
/// The id of the one request of each session.
pub const REQUEST: &str = "q";
/// The member's name of who asks.
pub const CLIENT: &str = "ann";
const ROLE: &str = "brain";
/// The script of a process that is to be a peer.
const SCRIPT: &str = "TWINSPAN_TEST_PEER";

/// What a peer does all its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Answers until it pauses, and goes on when it is told.
    Worker(Pause),
    /// Joins all sessions, asks in each of them, and listens.
    Client(pb::WorkerLoss),
}

/// Where a worker pauses in its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// After as many chunks as the session's place says.
    AtPlace,
    /// Halfway.
    Halfway,
}

impl Pause {
    fn after(self, place: usize) -> usize {
        match self {
            Pause::AtPlace => place,
            Pause::Halfway => CHUNKS / 2,
        }
    }
}

/// A part, and where it is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    pub part: Part,
    pub face: Face,
    pub address: SocketAddr,
}

const PARTS: [Part; 5] = [
    Part::Worker(Pause::AtPlace),
    Part::Worker(Pause::Halfway),
    Part::Client(pb::WorkerLoss::Fail),
    Part::Client(pb::WorkerLoss::RetryIfSilent),
    Part::Client(pb::WorkerLoss::Restart),
];

impl Script {
    fn write(self) -> String {
        let part = PARTS.iter().position(|part| *part == self.part).unwrap();
        let face = [Face::Grpc, Face::Json, Face::Binary];
        let face = face.iter().position(|face| *face == self.face).unwrap();
        format!("{part} {face} {}", self.address)
    }

    fn read(text: &str) -> Self {
        let [part, face, address] = text.split(' ').collect::<Vec<_>>()[..] else {
            panic!("not a script: {text}")
        };
        Self {
            part: PARTS[part.parse::<usize>().unwrap()],
            face: [Face::Grpc, Face::Json, Face::Binary][face.parse::<usize>().unwrap()],
            address: address.parse().unwrap(),
        }
    }

    /// Plays the part until nobody tells it anything any more, or the gateway is gone.
    async fn play(self, mut told: mpsc::UnboundedReceiver<()>, heard: impl Fn(Frame)) {
        let mut peer = Peer::at(self.address, self.face).await;
        let mut pause = None;
        match self.part {
            Part::Worker(at) => {
                pause = Some(at);
                peer.control("", Control::Serve(serve())).await;
            }
            Part::Client(policy) => {
                join_all(&mut peer, CLIENT, 0..PLACES, &Accounts::default()).await;
                ask_all(&mut peer, policy).await;
            }
        }
        let mut paused: Vec<(Frame, usize)> = Vec::new();
        loop {
            tokio::select! {
                received = peer.receive() => {
                    let Ok(frame) = received else { return };
                    if is_handed(&frame) {
                        let until = pause.map_or(CHUNKS, |pause| pause.after(place(&frame.session_id)));
                        say(&mut peer, &frame, 0..until).await;
                        match pause {
                            Some(_) => paused.push((frame.clone(), until)),
                            None => peer.send(final_reply(&frame)).await,
                        }
                    }
                    heard(frame);
                }
                command = told.recv() => {
                    let Some(()) = command else { return };
                    pause = None;
                    take_turns(&mut peer, std::mem::take(&mut paused), &heard).await;
                }
            }
        }
    }
}

/// The session that is interrupted at this place.
pub fn session(place: usize) -> String {
    format!("s-{place}")
}

pub fn place(session: &str) -> usize {
    session.strip_prefix("s-").unwrap().parse().unwrap()
}

/// The text of the first chunks of an attempt, which is like no other attempt's.
pub fn source(attempt: usize, chunks: usize) -> String {
    (0..chunks).map(|index| token(attempt as u32, index)).collect()
}

/// The whole text of an attempt.
pub fn whole(attempt: usize) -> String {
    source(attempt, CHUNKS) + &end_token(attempt as u32)
}

/// How many replies made up a text, the final one included.
fn replies(text: &str) -> usize {
    text.matches(' ').count() + usize::from(text.ends_with('.'))
}

fn token(attempt: u32, index: usize) -> String {
    format!("a{attempt}.{index} ")
}

fn end_token(attempt: u32) -> String {
    format!("a{attempt}.")
}

/// What a worker says of itself that takes all requests at once.
pub fn serve() -> pb::Serve {
    pb::Serve {
        role: ROLE.to_owned(),
        max_in_flight: PLACES as u32,
        ..pb::Serve::default()
    }
}

fn is_handed(frame: &Frame) -> bool {
    frame.attempt > 0 && frame.reply_to.is_empty()
}

/// Takes what a worker is handed in all sessions, in their order.
pub async fn hand_all(worker: &mut Peer) -> Vec<Frame> {
    let mut handed = Vec::new();
    while handed.len() < PLACES {
        handed.push(worker.handed().await);
    }
    handed.sort_by_key(|asked| place(&asked.session_id));
    handed
}

/// Sends chunks of an answer.
pub async fn say(worker: &mut Peer, asked: &Frame, chunks: std::ops::Range<usize>) {
    for index in chunks {
        let part = Frame {
            attempt: asked.attempt,
            index: Some(index as u32),
            ..chunk(asked, &token(asked.attempt, index))
        };
        worker.send(part).await;
    }
}

/// Sends what is left of an answer.
pub async fn finish(worker: &mut Peer, asked: &Frame, said: usize) {
    say(worker, asked, said..CHUNKS).await;
    worker.send(final_reply(asked)).await;
}

fn final_reply(asked: &Frame) -> Frame {
    Frame {
        attempt: asked.attempt,
        ..last(asked, &end_token(asked.attempt))
    }
}

/// Sends what is left of several answers, one reply of each at a time, never further ahead than the gateway can follow.
async fn take_turns(worker: &mut Peer, mut left: Vec<(Frame, usize)>, heard: &impl Fn(Frame)) {
    while !left.is_empty() {
        for (asked, said) in &mut left {
            match *said < CHUNKS {
                true => say(worker, asked, *said..*said + 1).await,
                false => worker.send(final_reply(asked)).await,
            }
            *said += 1;
        }
        left.retain(|(_, said)| *said <= CHUNKS);
        worker.control("", Control::Ping(pb::Ping::default())).await;
        loop {
            let Ok(frame) = worker.receive().await else { return };
            if matches!(control(&frame), Some(Control::Pong(_))) {
                break;
            }
            heard(frame);
        }
    }
}

/// Joins sessions, each after what is known of it.
async fn join_all(peer: &mut Peer, name: &str, places: impl IntoIterator<Item = usize>, known: &Accounts) {
    for place in places {
        let join = pb::Join {
            member_id: name.to_owned(),
            after_seq: Some(known.0[place].head),
            epoch: known.0[place].epoch.clone(),
            ..pb::Join::default()
        };
        peer.control(&session(place), Control::Join(join)).await;
    }
}

/// Asks in all sessions.
pub async fn ask_all(peer: &mut Peer, policy: pb::WorkerLoss) {
    for place in 0..PLACES {
        let options = pb::RequestOptions {
            on_worker_loss: policy as i32,
            ..pb::RequestOptions::default()
        };
        peer.send(with(request(&session(place), REQUEST, ROLE), options)).await;
    }
}

/// What one reader was told of all sessions, by their places.
#[derive(Clone)]
pub struct Accounts(Vec<Account>);

impl Default for Accounts {
    fn default() -> Self {
        Self((0..PLACES).map(|_| Account::default()).collect())
    }
}

impl Accounts {
    pub fn note(&mut self, frame: &Frame) {
        if !frame.session_id.is_empty() {
            self.0[place(&frame.session_id)].note(frame);
        }
    }

    pub fn put(&mut self, place: usize, account: Account) {
        self.0[place] = account;
    }

    /// The answer in the session, once it was asked for.
    pub fn answer(&self, place: usize) -> Option<&Answer> {
        self.0[place].answers.get(REQUEST)
    }

    /// How many replies of the first attempt there were.
    pub fn replies(&self, place: usize) -> usize {
        self.answer(place).map_or(0, |answer| replies(&answer.attempts[0]))
    }

    /// All that was told of the answers: the text of each attempt, and the end.
    pub fn told(&self) -> Vec<(Vec<String>, Option<End>)> {
        let answer = |place| self.answer(place).cloned().unwrap_or_default();
        let told = |answer: Answer| (answer.attempts, answer.end);
        (0..PLACES).map(answer).map(told).collect()
    }

    /// Takes in frames until every answer is as wanted. One that was so once counts for good.
    async fn follow(
        &mut self,
        what: &str,
        mut next: impl AsyncFnMut() -> Option<Frame>,
        wanted: impl Fn(usize, &Answer) -> bool,
    ) {
        let is_so = |accounts: &Self, place| accounts.answer(place).is_some_and(|answer| wanted(place, answer));
        let mut missing: BTreeSet<usize> = (0..PLACES).filter(|place| !is_so(self, *place)).collect();
        while !missing.is_empty() {
            let Some(frame) = next().await else {
                panic!("no more frames, and yet to come: {what} at {missing:?}")
            };
            self.note(&frame);
            if frame.seq > 0 && is_so(self, place(&frame.session_id)) {
                missing.remove(&place(&frame.session_id));
            }
        }
    }
}

/// A member of all sessions who does nothing but read, and remembers all.
pub struct Reader {
    pub peer: Peer,
    pub accounts: Accounts,
}

impl Reader {
    /// One who reads everything from the start.
    pub async fn begin(gateway: &Gateway, face: Face) -> Self {
        let mut reader = Self {
            peer: gateway.peer(face).await,
            accounts: Accounts::default(),
        };
        reader.join("eve", 0..PLACES).await;
        reader
    }

    /// Joins sessions, after what is known of them.
    pub async fn join(&mut self, name: &str, places: impl IntoIterator<Item = usize>) {
        join_all(&mut self.peer, name, places, &self.accounts).await;
    }

    pub async fn until_each(&mut self, what: &str, wanted: impl Fn(usize, &Answer) -> bool) {
        let next = async || Some(self.peer.next().await);
        patiently(what, self.accounts.follow(what, next, wanted)).await;
    }
}

/// A peer that plays its part.
pub struct Actor {
    pub accounts: Accounts,
    heard: mpsc::UnboundedReceiver<Frame>,
    told: Told,
}

/// How an actor is reached.
enum Told {
    Here(mpsc::UnboundedSender<()>),
    Process(Process),
}

struct Process {
    child: Child,
    /// Closed, it ends.
    stdin: ChildStdin,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Actor {
    /// In this process.
    pub fn here(script: Script) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let (hear, heard) = mpsc::unbounded_channel();
        // Who does not listen any more does not mind.
        tokio::spawn(script.play(told, move |frame| drop(hear.send(frame))));
        Self {
            accounts: Accounts::default(),
            heard,
            told: Told::Here(tell),
        }
    }

    /// In a process of its own: this program once more, of which one test is to be run.
    pub fn process(script: Script) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "actors::as_a_peer", "--nocapture"])
            .env(SCRIPT, script.write())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (hear, heard) = mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let types = Types::default();
            let rules = Rules {
                ignore_unknown: false,
                types: &types,
            };
            // The last line of one that was killed may be cut short; the runner of the tests has something to say, too.
            for line in stdout.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8(line).unwrap();
                if let (Some(begin), true) = (line.find('{'), line.ends_with('}')) {
                    let frame = Frame::from_json(&Str::from(&line[begin..]), &rules).unwrap();
                    drop(hear.send(frame));
                }
            }
        });
        Self {
            accounts: Accounts::default(),
            heard,
            told: Told::Process(Process { child, stdin }),
        }
    }

    fn signal(&self, signal: Signal) -> Pid {
        let Told::Process(process) = &self.told else {
            panic!("only processes take signals")
        };
        let pid = Pid::from_raw(process.child.id() as i32);
        kill(pid, signal).unwrap();
        pid
    }

    /// Ends the process on the spot; what it had said until then is taken in.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        let rest = async {
            while let Some(frame) = self.heard.recv().await {
                self.accounts.note(&frame);
            }
        };
        patiently("the last words of the process", rest).await;
    }

    /// Stops the process, until it is woken.
    pub fn stop(&self) {
        let pid = self.signal(Signal::SIGSTOP);
        let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert_eq!(stopped, WaitStatus::Stopped(pid, Signal::SIGSTOP));
    }

    pub fn wake(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Tells a worker to pause no more. One that is stopped does so as soon as it is woken.
    pub fn go_on(&mut self) {
        match &mut self.told {
            Told::Here(tell) => tell.send(()).unwrap(),
            Told::Process(process) => process.stdin.write_all(b"\n").unwrap(),
        }
    }

    /// The first frame that it hears of which the test makes something. No account is taken of those before it.
    pub async fn until<T>(&mut self, what: &str, mut test: impl FnMut(&Frame) -> Option<T>) -> T {
        let search = async {
            loop {
                let frame = self.heard.recv().await.expect("the actor must be there");
                if let Some(found) = test(&frame) {
                    return found;
                }
            }
        };
        patiently(what, search).await
    }

    pub async fn until_each(&mut self, what: &str, wanted: impl Fn(usize, &Answer) -> bool) {
        let next = async || self.heard.recv().await;
        patiently(what, self.accounts.follow(what, next, wanted)).await;
    }

    /// Takes in what it hears until it was told as often as there are sessions that it is out of one.
    pub async fn until_left(&mut self) {
        let search = async {
            let mut left = 0;
            while left < PLACES {
                let frame = self.heard.recv().await.expect("the actor must be there");
                left += usize::from(matches!(control(&frame), Some(Control::Left(_))));
                self.accounts.note(&frame);
            }
        };
        patiently("being out of all sessions", search).await;
    }
}

/// With a script, this is the life of a peer. Without, it is a test of such lives.
#[tokio::test]
async fn as_a_peer() {
    if let Ok(script) = std::env::var(SCRIPT) {
        return Script::read(&script).play(commands(), print).await;
    }
    let gateway = Gateway::start().await;
    let script = |part, face| {
        let script = Script {
            part,
            face,
            address: gateway.address,
        };
        assert_eq!(Script::read(&script.write()), script);
        script
    };
    let mut worker = Actor::here(script(Part::Worker(Pause::AtPlace), Face::Grpc));
    let mut client = Actor::here(script(Part::Client(pb::WorkerLoss::Fail), Face::Json));
    client
        .until_each("the pauses", |place, answer| answer.chunks as usize == place)
        .await;
    worker.go_on();
    client.until_each("the ends", |_, answer| answer.end.is_some()).await;
    assert_eq!(
        client.accounts.told(),
        vec![(vec![whole(1)], Some(End::Answered)); PLACES]
    );
    gateway.stopped().await;
}

/// A line of the standard input is a command; its end is the end.
fn commands() -> mpsc::UnboundedReceiver<()> {
    let (tell, told) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut lines = std::io::stdin().lock().lines().map_while(Result::ok);
        while lines.next().is_some() && tell.send(()).is_ok() {}
    });
    told
}

fn print(frame: Frame) {
    let mut line = b"\n".to_vec();
    frame.write_json(&mut line, &Types::default());
    line.push(b'\n');
    let mut stdout = std::io::stdout().lock();
    // Whoever started this process may be gone.
    drop(stdout.write_all(&line));
    drop(stdout.flush());
}
