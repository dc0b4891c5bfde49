//! What the gateway holds its peers to: every queue, map and window is bounded by a field of `Limits`.

mod rate;

pub use rate::{Bucket, Rate};

use std::collections::BTreeMap;
use std::time::Duration;

/// How a request gets along with others of its session for the same role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concurrency {
    /// They run side by side.
    Parallel,
    /// It waits until those before it have ended.
    Queue,
    /// It is refused if there is another one.
    Reject,
    /// The others end.
    Replace,
}

/// What is said of one role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// How long a worker may show no life and keep its requests.
    pub lease: Option<Duration>,
    /// How requests of one session get along, where they do not say.
    pub concurrency: Option<Concurrency>,
}

/// The numbers in force. `config` fills it in and checks that they fit together.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections of the whole gateway.
    pub connections: usize,
    /// Connections of one subject.
    pub connections_per_subject: usize,
    /// Sessions of the whole gateway.
    pub sessions: usize,
    /// Sessions that one subject has brought into being.
    pub sessions_per_subject: usize,
    /// Bytes of one frame, in the form in which it arrives.
    pub frame_bytes: usize,
    /// Members of one session, watchers and askers that have not joined included.
    pub members: usize,
    /// Sessions that a connection may be in.
    pub joins: usize,
    /// Roles that a connection may serve.
    pub roles: usize,
    /// Open requests of one session.
    pub open_requests: usize,
    /// Requests that wait for one role.
    pub waiting: usize,
    /// Requests that a worker may hold.
    pub max_in_flight: u32,
    /// Ids that a session remembers, for dedup.
    pub dedup_ids: usize,
    /// Ended requests that a session remembers, to tell "over" from "never heard of".
    pub ended_requests: usize,
    /// Ephemeral and presence frames that wait for the members of a session.
    pub ephemeral_frames: usize,
    /// Bytes of them.
    pub ephemeral_bytes: usize,
    /// The newest frames of a session that are at hand for its live members.
    pub tail_frames: usize,
    /// Bytes of direct answers to a connection beyond which it is not read from.
    pub outbox_bytes: usize,
    /// Answers to a connection beyond which it is not read from.
    pub outbox_frames: usize,
    /// Bytes that others have sent to a connection alone (requests to a worker), and that it has not taken, beyond which it is
    /// disconnected.
    pub unread_bytes: usize,
    /// From the accepted TCP connection to the first request.
    pub handshake: Duration,
    /// How long a connection may take to say who it is.
    pub auth_timeout: Duration,
    /// Bytes that it may send before it has.
    pub pre_auth_bytes: usize,
    /// How long a peer may show no life before it is asked for some.
    pub heartbeat: Duration,
    /// How long a worker may show no life and keep its requests, where nothing is said of its role.
    pub lease: Duration,
    /// Of a request that says nothing of it: how long it may wait for a worker.
    pub accept_timeout: Duration,
    /// Of a request that says nothing of it: how long it may take in all.
    pub total_timeout: Duration,
    /// Of a worker with a name that says nothing of it: how long it may be away and keep its requests.
    pub worker_grace: Duration,
    /// Of a cancel that says nothing of it: how long the worker has to end the request by itself.
    pub cancel_grace: Duration,
    /// Affinity keys of one role of which the worker is remembered.
    pub affinity_keys: usize,
    /// What is said of single roles.
    pub per_role: BTreeMap<String, Role>,
    /// TCP connections of the whole gateway.
    pub sockets: usize,
    /// TCP connections, and WebSockets and streams, of one client address.
    pub connections_per_ip: usize,
    /// New TCP connections of one client address in a second.
    pub connects_per_second: u32,
    /// Streams that an HTTP/2 connection may have open.
    pub http2_streams: u32,
    /// Streams of an HTTP/2 connection that either side resets in a second.
    pub http2_resets_per_second: u32,
    /// Frames of an HTTP/2 connection, in a second, that bring nothing and cost work.
    pub http2_control_per_second: u32,
    /// Bytes of a request's headers.
    pub header_bytes: usize,
    /// Fragments of one WebSocket message.
    pub fragments: u32,
    /// Pings, pongs and empty fragments of a WebSocket in a second.
    pub ws_control_per_second: u32,
    /// Frames of a connection in a second.
    pub frames_per_second: u32,
    /// Bytes of them.
    pub bytes_per_second: usize,
    /// Frames, in a second, of a connection that serves a role.
    pub worker_frames_per_second: u32,
    /// Bytes of them.
    pub worker_bytes_per_second: usize,
    /// Calls over one TCP connection in a second.
    pub calls_per_second: u32,
    /// Resident memory of the process.
    pub memory: usize,
    /// Bytes of the open requests of one session.
    pub request_bytes: usize,
    /// Bytes of the open requests of all sessions.
    pub total_request_bytes: usize,
    /// How long a connection may be used for nothing.
    pub idle: Duration,
    /// How long the request of a unary call may take to arrive.
    pub call: Duration,
}

impl Limits {
    /// The rate at which streams may be opened on an HTTP/2 connection before it is ended: well above that of calls, which
    /// are refused first.
    pub fn http2_opens_per_second(&self) -> u32 {
        self.calls_per_second.saturating_mul(4)
    }

    /// The shortest time that any worker may show no life.
    pub fn shortest_lease(&self) -> Duration {
        let of_roles = self.per_role.values().filter_map(|role| role.lease);
        of_roles.fold(self.lease, Duration::min)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 100_000,
            connections_per_subject: 1_000,
            sessions: 100_000,
            sessions_per_subject: 10_000,
            frame_bytes: 1 << 20,
            members: 10_000,
            joins: 10_000,
            roles: 32,
            open_requests: 1_000,
            waiting: 10_000,
            max_in_flight: 1_024,
            dedup_ids: 1_024,
            ended_requests: 256,
            ephemeral_frames: 256,
            ephemeral_bytes: 1 << 20,
            tail_frames: 1_024,
            outbox_bytes: 1 << 20,
            outbox_frames: 1_024,
            unread_bytes: 64 << 20,
            handshake: Duration::from_secs(10),
            auth_timeout: Duration::from_secs(5),
            pre_auth_bytes: 64 << 10,
            heartbeat: Duration::from_secs(30),
            lease: Duration::from_secs(60),
            accept_timeout: Duration::from_secs(30),
            total_timeout: Duration::from_secs(600),
            worker_grace: Duration::from_secs(10),
            cancel_grace: Duration::from_secs(2),
            affinity_keys: 10_000,
            per_role: BTreeMap::new(),
            sockets: 120_000,
            connections_per_ip: 1_000,
            connects_per_second: 100,
            http2_streams: 100,
            http2_resets_per_second: 100,
            http2_control_per_second: 500,
            header_bytes: 16 << 10,
            fragments: 1_024,
            ws_control_per_second: 50,
            frames_per_second: 2_000,
            bytes_per_second: 16 << 20,
            worker_frames_per_second: 50_000,
            worker_bytes_per_second: 256 << 20,
            calls_per_second: 2_000,
            memory: 2 << 30,
            request_bytes: 16 << 20,
            total_request_bytes: 512 << 20,
            idle: Duration::from_secs(600),
            call: Duration::from_secs(60),
        }
    }
}
