//! The settings: one table declares each of them, and the file, the environment, the flags, the checks and the manual
//! (docs/CONFIGURATION.md) derive from it.
//!
//! A setting is changed by, from the strongest: a flag, an environment variable, the file, its default. All that is wrong is
//! reported at once. Nothing here opens a socket or starts anything.

mod kind;
mod load;
mod manual;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::auth;
use crate::edge::{Forwarding, Pattern, Proxies};
use crate::limits::Limits;
use crate::log::{Durability, Retention};

use kind::{
    Address, Asked, Bytes, Certificates, Count, Described, File, Files, Filter, Folder, Format, Header, Issuers, Kind,
    Networks, OtherAddress, Pages, Promise, Raw, Roles, Routes, Span, Switch, Version,
};
pub use kind::{ClientCertificates, LogFormat, TlsVersion, parse_duration};
pub use load::{Errors, Flag, Inputs, Loaded, Problem, Source};

/// The variable by which the commands are told a credential: nobody's setting.
pub const TOKEN_VARIABLE: &str = "TWINSPAN_TOKEN";

/// The settings in force.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the gateway listens.
    pub listen: SocketAddr,
    /// Whether `listen` may be an address that other machines reach.
    pub allow_public_without_auth: bool,
    /// How peers prove who they are.
    pub auth: auth::Settings,
    /// Where the gateway listens for plaintext, beside TLS.
    pub plaintext_listen: Option<SocketAddr>,
    /// Whether plaintext may be spoken on an address that other machines reach.
    pub allow_public_without_tls: bool,
    /// What `listen` shows, and asks for.
    pub tls: Tls,
    /// Who stands in front of the gateway.
    pub proxies: Proxies,
    /// Whose pages may use the gateway, beside its own.
    pub origins: Vec<Pattern>,
    /// The form of the process's own log.
    pub log_format: LogFormat,
    /// What the process's own log holds.
    pub log_filter: String,
    /// How long open requests may go on once the gateway is asked to stop.
    pub drain_grace: Duration,
    /// Files with the descriptors of typed messages.
    pub descriptors: Vec<PathBuf>,
    /// Which frame type goes to which role.
    pub routes: BTreeMap<String, String>,
    /// Where sessions are kept.
    pub data_dir: PathBuf,
    /// What is durable when it is acked.
    pub durability: Durability,
    /// How the disk is used.
    pub disk: DiskUse,
    /// Backups on a schedule.
    pub backup: Backups,
    /// How much of the sessions is kept.
    pub retention: Retention,
    /// How long a session that nobody uses is kept.
    pub idle: Duration,
    /// Whether the text chunks of a finished reply are kept as one.
    pub fold: bool,
    /// What peers are held to.
    pub limits: Limits,
}

/// How the disk is used, where sessions are kept there.
#[derive(Clone, Debug)]
pub struct DiskUse {
    /// How many bytes are to be left on it.
    pub min_free: usize,
    /// How many bytes may wait to be written.
    pub queue: usize,
    /// How many bytes of what was read are kept in memory.
    pub cache: usize,
    /// How long a session that nobody is in stays in memory.
    pub unload: Duration,
}

/// Backups on a schedule.
#[derive(Clone, Debug)]
pub struct Backups {
    /// Where they go; without it there are none.
    pub dir: Option<PathBuf>,
    /// How often.
    pub interval: Duration,
    /// How many are kept.
    pub keep: usize,
}

/// What concerns TLS. Without a certificate, `listen` speaks plaintext.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// The file with the certificate and those between it and its root.
    pub certificate: Option<PathBuf>,
    /// The file with its key.
    pub key: Option<PathBuf>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// The file with the roots of clients' certificates.
    pub client_ca: Option<PathBuf>,
    /// Whether clients are asked for certificates.
    pub client_certificates: ClientCertificates,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7080)),
            allow_public_without_auth: false,
            auth: auth::Settings::default(),
            plaintext_listen: None,
            allow_public_without_tls: false,
            tls: Tls::default(),
            proxies: Proxies::default(),
            origins: Vec::new(),
            log_format: LogFormat::Text,
            log_filter: "info".to_owned(),
            drain_grace: Duration::from_secs(10),
            descriptors: Vec::new(),
            routes: BTreeMap::new(),
            data_dir: PathBuf::from("twinspan-data"),
            durability: Durability::Durable,
            disk: DiskUse {
                min_free: 256 << 20,
                queue: 64 << 20,
                cache: 64 << 20,
                unload: Duration::from_secs(60),
            },
            backup: Backups {
                dir: None,
                interval: Duration::from_secs(24 * 60 * 60),
                keep: 7,
            },
            retention: Retention {
                age: Duration::from_secs(30 * 24 * 60 * 60),
                frames: 100_000,
                bytes: 16 << 20,
                total_bytes: 1 << 30,
            },
            idle: Duration::from_secs(30 * 24 * 60 * 60),
            fold: false,
            limits: Limits::default(),
        }
    }
}

/// One row of the table.
pub struct Setting {
    /// The name, as the file has it.
    pub key: &'static str,
    /// What it does, for the manual.
    pub doc: &'static str,
    /// The flag's name without dashes, where it has one of its own.
    pub flag: Option<&'static str>,
    /// Whether the flag stands alone, for "true".
    pub is_switch: bool,
    expected: &'static str,
    read: fn(&mut Config, &Raw) -> Option<()>,
    show: fn(&Config) -> toml::Value,
}

impl Setting {
    /// The environment variable's name.
    pub fn variable(&self) -> String {
        format!("TWINSPAN_{}", self.key.replace('.', "_").to_uppercase())
    }

    /// The part of the name before the dot; empty for settings that have none.
    fn section(&self) -> &'static str {
        self.key.split_once('.').map_or("", |(section, _)| section)
    }

    /// The value that it has in `config`, as TOML.
    fn value(&self, config: &Config) -> String {
        (self.show)(config).to_string()
    }
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.key)
    }
}

macro_rules! settings {
    ($($key:literal $([$flag:literal])? $kind:ident $($field:ident).+, $doc:literal;)*) => {
        /// All settings, in the order of the manual.
        pub const SETTINGS: &[Setting] = &[$(Setting {
            key: $key,
            doc: $doc,
            flag: settings!(@flag $($flag)?),
            is_switch: settings!(@switch $kind),
            expected: $kind::EXPECTED,
            read: |config, raw| {
                config.$($field).+ = $kind::read(raw)?;
                Some(())
            },
            show: |config| $kind::show(&config.$($field).+),
        },)*];
    };
    (@flag) => { None };
    (@flag $flag:literal) => { Some($flag) };
    (@switch Switch) => { true };
    (@switch $other:ident) => { false };
}

settings! {
    "listen" ["listen"] Address listen,
        "The address and port for everything: gRPC, WebSocket and HTTP. Port 0 has the system choose one.";
    "allow_public_without_auth" ["allow-public-without-auth"] Switch allow_public_without_auth,
        "Allow `listen` to be an address that other machines can reach, though the gateway does not authenticate its peers (no setting of `auth` says whose credentials to take): whoever reaches the port can then read and write every session.";
    "plaintext_listen" OtherAddress plaintext_listen,
        "A second address, for plaintext beside TLS, such as a loopback address for programs on the same machine. Without a certificate, `listen` speaks plaintext already.";
    "allow_public_without_tls" ["allow-public-without-tls"] Switch allow_public_without_tls,
        "Allow plaintext on an address that other machines can reach. Whoever is on the way then reads and changes what is said, unless something in front of the gateway speaks TLS.";
    "origins" Pages origins,
        "Whose pages may use the gateway from a browser: origins such as `https://app.example.com` or `http://localhost:*` (any port), `null` (files and sandboxed frames), `*` (any page). Pages of the gateway's own address always may; where it goes by a name, the name counts only if it is listed, as long as the gateway authenticates nobody (DNS rebinding). Others are refused with ORIGIN_DENIED, on WebSocket, gRPC-Web and HTTP alike.";
    "descriptors" Files descriptors,
        "Files with compiled FileDescriptorSets (`protoc --include_imports --descriptor_set_out`, `buf build -o`). With them, typed messages are transcoded between JSON and protobuf.";
    "routes" Routes routes,
        "Which frame type is a request to which role, for frames with neither `to` nor `reply_to`: `routes = { query = \"brain\" }`.";
    "roles" Roles limits.per_role,
        "What is said of single roles: `lease`, how long a worker may show no life and keep its requests, and `concurrency`, how requests of one session get along that do not say (`parallel`, `queue`, `reject`, `replace`): `roles = { brain = { lease = \"30s\", concurrency = \"queue\" } }`. In the environment and behind a flag the same TOML: `{ brain = { lease = \"30s\" } }`.";
    "auth.issuers" Issuers auth.issuers,
        "Whose tokens (JWT) are taken: a list of tables with `issuer` (its `iss`), `audience` (one must be in `aud`), `algorithms`, exactly one of `secret_file`, `key_file` (PEM), `jwks_file` and `jwks_url`, and optionally `claim` (the claim with grants: `twinspan`), `grants` and `subject_prefix`. docs/AUTH.md shows them. In the environment and behind a flag the same TOML: `[{ issuer = \"…\", … }]`.";
    "auth.api_keys" File auth.api_keys,
        "A file with API keys for backends, made by `twinspan token key`. It holds hashes only, and is read again when it changes.";
    "auth.certificates" Certificates auth.certificates,
        "What client certificates stand for: a list of tables with one of `san_uri`, `san_dns` and `common_name` (one `*` in each), `subject` (`{0}` is the name that fitted, `{1}` what `*` stood for) and `grants`. The first that fits counts.";
    "auth.revocations" File auth.revocations,
        "A file with what was taken back before its time, an object a line. `Admin.Revoke` appends to it; it is read again when it changes. Without it, revocations end with the process.";
    "auth.leeway" Span auth.leeway,
        "How far the clocks of those who make tokens may be off.";
    "auth.jwks_refresh" Span auth.jwks_refresh,
        "How often key sets are fetched from their `jwks_url`. A token with a key that is not known has them fetched at once, at most every 10 s. While they cannot be fetched, the old ones serve on, for a day at most.";
    "auth.ca" File auth.ca,
        "A PEM file with certificates of authorities that are trusted beside the system's when key sets are fetched.";
    "auth.query" Switch auth.query,
        "Take a token also from the query of a WebSocket's URL (`?access_token=…`). Such URLs end up in logs and histories: rather use the subprotocol.";
    "log.format" ["log-format"] Format log_format,
        "The form of the gateway's own log on stderr: `text` for people, `json` for machines.";
    "log.filter" Filter log_filter,
        "What the gateway's own log holds: a level (`error`, `warn`, `info`, `debug`, `trace`), or directives such as `info,twinspan::session=debug`. Payloads and credentials are never logged; what libraries would say at `debug` and `trace` is left out, since it has credentials in it.";
    "tls.certificate" File tls.certificate,
        "The file with the gateway's certificate in PEM, followed by those between it and its root. With it `listen` speaks TLS, for gRPC, WebSocket and HTTP alike. The files named here are looked at every 2 seconds, and taken when they have changed; one that cannot be used leaves the old one in force.";
    "tls.key" File tls.key,
        "The file with the key of the certificate, in PEM.";
    "tls.min_version" Version tls.min_version,
        "The oldest version of TLS that is spoken: `1.2` or `1.3`.";
    "tls.client_ca" File tls.client_ca,
        "The file with the roots, in PEM, that clients' certificates must come from.";
    "tls.client_certificates" Asked tls.client_certificates,
        "Whether clients show certificates: `off` asks for none, `optional` verifies one that is shown, `required` refuses connections without one.";
    "proxy.trusted" Networks proxies.trusted,
        "Addresses and networks of proxies that are believed: `[\"10.0.0.0/8\", \"192.0.2.7\"]`.";
    "proxy.protocol" Switch proxies.protocol,
        "Connections from `proxy.trusted` begin with a PROXY header, version 1 or 2, before TLS. One without is closed; from anybody else the header is garbage.";
    "proxy.headers" Header proxies.headers,
        "The header in which `proxy.trusted` names its client: `off`, `x-forwarded-for` or `forwarded` (RFC 7239). It is read from the right, past trusted proxies; from anybody else it says nothing.";
    "drain.grace" Span drain_grace,
        "How long open requests may go on once the gateway is asked to stop. What is still open then goes on in the next process; where `durability` is `memory`, it ends with SHUTDOWN.";
    "data_dir" ["data-dir"] Folder data_dir,
        "The directory in which sessions are kept; it comes into being, for this user alone, if need be. One process uses it at a time.";
    "durability" ["durability"] Promise durability,
        "What can be lost. `durable`: nothing that was acked; an ack comes after the frame was synced to the disk, together with what others sent meanwhile. `relaxed`: if the machine loses power or its system crashes, what was acked in the last second or so; a crash of the gateway loses nothing. `memory`: everything, when the gateway ends; nothing is written to the disk, and `data_dir` is not used.";
    "disk.min_free" Bytes disk.min_free,
        "How many bytes are to be left on the disk of `data_dir`. With fewer, what would write is refused with LOG_FULL, reading goes on, and the gateway is not ready, until there is room again.";
    "disk.queue" Bytes disk.queue,
        "How many bytes may wait to be written. Beyond it, the disk is too slow for what comes: more is refused with LOG_UNAVAILABLE until it has caught up.";
    "disk.cache" Bytes disk.cache,
        "How many bytes of what was read from the disk are kept in memory.";
    "disk.unload" Span disk.unload,
        "How long a session that nobody is in, and that has no open request, stays in memory. After that it is on the disk only, and comes back when it is wanted.";
    "backup.dir" File backup.dir,
        "The directory into which the gateway backs itself up, better on another disk than `data_dir`. Without it, it does not.";
    "backup.interval" Span backup.interval,
        "How long after a backup the next one is made. The first one is made at the start, if the newest in `backup.dir` is older than that.";
    "backup.keep" Count backup.keep,
        "How many backups are kept in `backup.dir`. The oldest go first.";
    "retention.age" Span retention.age,
        "How long a frame is kept. Beyond it a frame goes with the next one of its session, at the latest within about `limits.heartbeat`.";
    "retention.frames" Count retention.frames,
        "How many frames are kept of each session. The oldest go first.";
    "retention.bytes" Bytes retention.bytes,
        "How many bytes of frames are kept of each session: on disk as they are written, in memory as they are held there.";
    "retention.total_bytes" Bytes retention.total_bytes,
        "Where `durability` is `memory`: how many bytes of frames are kept of all sessions together. A session that grows past it gives up its own oldest frames. On disk, `disk.min_free` is the bound.";
    "retention.idle" Span idle,
        "How long a session without members and open requests is kept after it was last used.";
    "retention.fold" Switch fold,
        "Keep the text chunks of a finished reply as one frame, so that history holds answers rather than tokens. Readers who begin in the middle of one get the rest of it.";
    "limits.connections" Count limits.connections,
        "Connections of the whole gateway.";
    "limits.connections_per_subject" Count limits.connections_per_subject,
        "Connections of one subject, where peers are authenticated.";
    "limits.sessions" Count limits.sessions,
        "Sessions of the whole gateway, those included that are on disk only.";
    "limits.sessions_per_subject" Count limits.sessions_per_subject,
        "Sessions that one subject has brought into being and that are still there, where peers are authenticated.";
    "limits.frame_bytes" Bytes limits.frame_bytes,
        "Bytes of one frame, in the form in which it arrives. A larger one ends its connection.";
    "limits.members" Count limits.members,
        "Members of one session, watchers included.";
    "limits.joins" Count limits.joins,
        "Sessions that one connection may be in.";
    "limits.roles" Count limits.roles,
        "Roles that one connection may serve.";
    "limits.open_requests" Count limits.open_requests,
        "Open requests of one session.";
    "limits.waiting" Count limits.waiting,
        "Requests that wait for a worker of one role.";
    "limits.max_in_flight" Count limits.max_in_flight,
        "Requests that one worker may hold. A worker that asks for more is given this.";
    "limits.dedup_ids" Count limits.dedup_ids,
        "Frame ids that a session remembers, so that a frame sent again is not logged again.";
    "limits.ended_requests" Count limits.ended_requests,
        "Ended requests that a session remembers, to tell \"over\" from \"never heard of\".";
    "limits.ephemeral_frames" Count limits.ephemeral_frames,
        "Ephemeral and presence frames that wait for the members of a session. Members that lag further behind miss some.";
    "limits.ephemeral_bytes" Bytes limits.ephemeral_bytes,
        "Bytes of ephemeral and presence frames that wait for the members of a session; the newest one always does.";
    "limits.tail_frames" Count limits.tail_frames,
        "The newest frames of a session that are at hand for its live members, who read the log for older ones.";
    "limits.outbox_bytes" Bytes limits.outbox_bytes,
        "Bytes of direct answers that may wait for a connection; beyond it, the connection is not read from.";
    "limits.outbox_frames" Count limits.outbox_frames,
        "Direct answers that may wait for a connection; beyond it, the connection is not read from.";
    "limits.unread_bytes" Bytes limits.unread_bytes,
        "Bytes that others have sent to one connection (requests to a worker) and that it leaves unread; beyond it, it is disconnected.";
    "limits.handshake" Span limits.handshake,
        "From the accepted TCP connection to the first request on it, with the PROXY header and TLS in between; and of HTTP/1.1, from one request to the next.";
    "limits.auth_timeout" Span limits.auth_timeout,
        "Where peers are authenticated: how long a connection may take to say who it is, in its handshake or by `Hello`.";
    "limits.pre_auth_bytes" Bytes limits.pre_auth_bytes,
        "Where peers are authenticated: how many bytes it may send before it has.";
    "limits.heartbeat" Span limits.heartbeat,
        "How long a peer may show no life before it is pinged; after twice as long it is disconnected.";
    "limits.lease" Span limits.lease,
        "How long a worker may show no sign of life and keep its requests, where `roles` says nothing of its role.";
    "limits.accept_timeout" Span limits.accept_timeout,
        "How long a request that does not say may wait for a worker.";
    "limits.total_timeout" Span limits.total_timeout,
        "How long a request that does not say may take in all.";
    "limits.worker_grace" Span limits.worker_grace,
        "How long a worker that has a name (`worker_id`) and does not say may be away from its lost connection and keep its requests.";
    "limits.cancel_grace" Span limits.cancel_grace,
        "How long a worker has to end a cancelled request by itself, where the cancel does not say.";
    "limits.affinity_keys" Count limits.affinity_keys,
        "Affinity keys of one role of which the gateway remembers the worker. The oldest are forgotten first.";
    "limits.sockets" Count limits.sockets,
        "TCP connections of the whole gateway, whatever they carry. One more is closed at once; some are told so by an HTTP 503.";
    "limits.connections_per_ip" Count limits.connections_per_ip,
        "TCP connections of one client address, and as many WebSockets and streams; of IPv6, a /64 is one address. One more TCP connection is closed at once; some are told so by an HTTP 429.";
    "limits.connects_per_second" Count limits.connects_per_second,
        "New TCP connections of one client address in a second, with a burst of five seconds' worth. One that is ended for a flood counts for 25.";
    "limits.http2_streams" Count limits.http2_streams,
        "Streams that one HTTP/2 connection may have open: calls, streams and WebSockets over HTTP/2.";
    "limits.http2_resets_per_second" Count limits.http2_resets_per_second,
        "Streams of one HTTP/2 connection that its peer resets, or brings the gateway to reset, in a second, with a burst of two seconds' worth. Beyond it, the connection ends (GOAWAY with ENHANCE_YOUR_CALM).";
    "limits.http2_control_per_second" Count limits.http2_control_per_second,
        "HTTP/2 frames of one connection in a second that carry no data (SETTINGS, PING, PRIORITY, WINDOW_UPDATE, empty DATA, unknown ones), beyond those that the data of either side accounts for, with a burst of two seconds' worth. Beyond it, the connection ends (GOAWAY with ENHANCE_YOUR_CALM).";
    "limits.header_bytes" Bytes limits.header_bytes,
        "Bytes of the headers of one request. Larger ones are answered with HTTP 431, or end the connection.";
    "limits.fragments" Count limits.fragments,
        "Fragments of one WebSocket message. Beyond it, the connection ends with PROTOCOL_FLOOD.";
    "limits.ws_control_per_second" Count limits.ws_control_per_second,
        "Pings, pongs and empty fragments of one WebSocket in a second, with a burst of two seconds' worth. Beyond it, the connection ends with PROTOCOL_FLOOD.";
    "limits.frames_per_second" Count limits.frames_per_second,
        "Frames that one connection may send in a second, with a burst of two seconds' worth. More are refused with RATE_LIMITED; who goes on regardless is disconnected.";
    "limits.bytes_per_second" Bytes limits.bytes_per_second,
        "Bytes of frames that one connection may send in a second, with a burst of two seconds' worth.";
    "limits.worker_frames_per_second" Count limits.worker_frames_per_second,
        "The same as `limits.frames_per_second`, for connections that serve a role.";
    "limits.worker_bytes_per_second" Bytes limits.worker_bytes_per_second,
        "The same as `limits.bytes_per_second`, for connections that serve a role.";
    "limits.calls_per_second" Count limits.calls_per_second,
        "Calls (everything that is asked over HTTP) of one TCP connection in a second, with a burst of two seconds' worth. More are refused with RATE_LIMITED; who opens four times as many HTTP/2 streams is disconnected.";
    "limits.memory" Bytes limits.memory,
        "Resident memory of the process beyond which what is new (connections, joins, sessions, requests) is refused with OVERLOADED, so that what is there can go on. Cut to nine tenths of what the machine or its control group has. It has no effect where there is no /proc.";
    "limits.request_bytes" Bytes limits.request_bytes,
        "Bytes of the open requests of one session, which are kept in memory until they end.";
    "limits.total_request_bytes" Bytes limits.total_request_bytes,
        "Bytes of the open requests of all sessions together.";
    "limits.idle" Span limits.idle,
        "How long a TCP connection may be without an open call, and a WebSocket or stream in no session, without a role and without a frame sent. Then it ends, in good order (GOAWAY, IDLE).";
    "limits.call" Span limits.call,
        "How long the request of a unary call may take to arrive in full. Then the call ends with CALL_TIMEOUT.";
}

/// What must hold between settings, or of one beyond its form.
struct Relation {
    /// The one that is reported, then those that it is measured against.
    keys: &'static [&'static str],
    expected: &'static str,
    holds: fn(&Config) -> bool,
}

const RELATIONS: &[Relation] = &[
    Relation {
        keys: &["listen", "allow_public_without_auth"],
        expected: "a loopback address, such as 127.0.0.1:7080: the gateway does not authenticate its peers (no setting of \
                   `auth` says whose credentials to take), so whoever reaches the port could read and write every session. If \
                   something else keeps strangers out, say so with --allow-public-without-auth",
        holds: |config| {
            config.listen.ip().is_loopback() || config.auth.is_required() || config.allow_public_without_auth
        },
    },
    Relation {
        keys: &["auth.leeway"],
        expected: "at most 5m: for so long credentials are good that have expired",
        holds: |config| config.auth.leeway <= Duration::from_secs(300),
    },
    Relation {
        keys: &["auth.jwks_refresh"],
        expected: "at least 10s and at most 1d",
        holds: |config| (10..=24 * 60 * 60).contains(&config.auth.jwks_refresh.as_secs()),
    },
    Relation {
        keys: &["listen", "tls.certificate", "allow_public_without_tls"],
        expected: "a loopback address, or a certificate: on the way to other machines, plaintext can be read and changed. If \
                   something in front of the gateway speaks TLS, say so with --allow-public-without-tls",
        holds: |config| {
            config.listen.ip().is_loopback() || config.tls.certificate.is_some() || config.allow_public_without_tls
        },
    },
    Relation {
        keys: &["plaintext_listen", "allow_public_without_tls"],
        expected: "a loopback address: on the way to other machines, plaintext can be read and changed. If something in front \
                   of the gateway speaks TLS, say so with --allow-public-without-tls",
        holds: |config| plaintext_is_loopback(config) || config.allow_public_without_tls,
    },
    Relation {
        keys: &["plaintext_listen", "allow_public_without_auth"],
        expected: "a loopback address, as of listen, or --allow-public-without-auth",
        holds: |config| plaintext_is_loopback(config) || config.auth.is_required() || config.allow_public_without_auth,
    },
    Relation {
        keys: &["plaintext_listen", "tls.certificate"],
        expected: "nothing without a certificate: listen speaks plaintext then",
        holds: |config| config.plaintext_listen.is_none() || config.tls.certificate.is_some(),
    },
    Relation {
        keys: &["tls.certificate", "tls.key"],
        expected: "to be given together with tls.key, or neither",
        holds: |config| config.tls.certificate.is_some() == config.tls.key.is_some(),
    },
    Relation {
        keys: &["tls.client_certificates", "tls.client_ca", "tls.certificate"],
        expected: "off, or tls.client_ca, tls.certificate and tls.key beside it: nothing else tells whose certificates are good",
        holds: |config| {
            let is_complete = config.tls.client_ca.is_some() && config.tls.certificate.is_some();
            config.tls.client_certificates == ClientCertificates::Off || is_complete
        },
    },
    Relation {
        keys: &["proxy.protocol", "proxy.trusted"],
        expected: "false, or somebody to trust: the header counts only from proxy.trusted",
        holds: |config| !config.proxies.protocol || !config.proxies.trusted.is_empty(),
    },
    Relation {
        keys: &["proxy.headers", "proxy.trusted"],
        expected: "off, or somebody to trust: the header counts only from proxy.trusted",
        holds: |config| config.proxies.headers == Forwarding::Off || !config.proxies.trusted.is_empty(),
    },
    Relation {
        keys: &["limits.frame_bytes"],
        expected: "at most 1GiB",
        holds: |config| config.limits.frame_bytes <= 1 << 30,
    },
    Relation {
        keys: &["limits.header_bytes"],
        expected: "at least 8KiB and at most 1MiB",
        holds: |config| (8 << 10..=1 << 20).contains(&config.limits.header_bytes),
    },
    Relation {
        keys: &["limits.request_bytes", "limits.frame_bytes"],
        expected: "at least five times limits.frame_bytes and 64KiB, which is what one request may take in memory",
        holds: |config| config.limits.request_bytes / 5 >= config.limits.frame_bytes + (13 << 10),
    },
    Relation {
        keys: &["limits.total_request_bytes", "limits.request_bytes"],
        expected: "at least limits.request_bytes, so that one session can have its share",
        holds: |config| config.limits.total_request_bytes >= config.limits.request_bytes,
    },
    Relation {
        keys: &["limits.outbox_bytes", "limits.frame_bytes"],
        expected: "at least limits.frame_bytes, so that any one answer fits",
        holds: |config| config.limits.outbox_bytes >= config.limits.frame_bytes,
    },
    Relation {
        keys: &["limits.unread_bytes", "limits.outbox_bytes"],
        expected: "at least limits.outbox_bytes, so that nobody is disconnected for its own answers",
        holds: |config| config.limits.unread_bytes >= config.limits.outbox_bytes,
    },
    Relation {
        keys: &["retention.bytes", "limits.frame_bytes"],
        expected: "at least limits.frame_bytes, so that any one frame can be kept",
        holds: |config| config.retention.bytes >= config.limits.frame_bytes,
    },
    Relation {
        keys: &["retention.total_bytes", "retention.bytes"],
        expected: "at least retention.bytes, so that one session can have its share",
        holds: |config| config.retention.total_bytes >= config.retention.bytes,
    },
    Relation {
        keys: &["backup.dir", "durability"],
        expected: "nothing where durability is memory: there is nothing on disk to back up",
        holds: |config| config.backup.dir.is_none() || config.durability != Durability::Memory,
    },
    Relation {
        keys: &["backup.interval"],
        expected: "at least 1s",
        holds: |config| config.backup.interval >= Duration::from_secs(1),
    },
    Relation {
        keys: &["disk.queue", "limits.frame_bytes"],
        expected: "at least eight times limits.frame_bytes, so that a few large frames can wait",
        holds: |config| config.disk.queue / 8 >= config.limits.frame_bytes,
    },
    Relation {
        keys: &["limits.accept_timeout", "limits.total_timeout"],
        expected: "at most limits.total_timeout, of which it is a part",
        holds: |config| config.limits.accept_timeout <= config.limits.total_timeout,
    },
    Relation {
        keys: &["limits.lease"],
        expected: "at least 100ms and at most 24h",
        holds: |config| is_lease(config.limits.lease),
    },
    Relation {
        keys: &["roles"],
        expected: "leases of at least 100ms and at most 24h",
        holds: |config| {
            config
                .limits
                .per_role
                .values()
                .filter_map(|role| role.lease)
                .all(is_lease)
        },
    },
    Relation {
        keys: &["limits.worker_grace"],
        expected: "at most 5m",
        holds: |config| config.limits.worker_grace <= Duration::from_secs(300),
    },
    Relation {
        keys: &["limits.cancel_grace"],
        expected: "at most 1m",
        holds: |config| config.limits.cancel_grace <= Duration::from_secs(60),
    },
    Relation {
        keys: &["limits.total_timeout"],
        expected: "at most 24h",
        holds: |config| config.limits.total_timeout <= Duration::from_secs(24 * 60 * 60),
    },
];

fn plaintext_is_loopback(config: &Config) -> bool {
    config.plaintext_listen.is_none_or(|address| address.ip().is_loopback())
}

fn is_lease(span: Duration) -> bool {
    (Duration::from_millis(100)..=Duration::from_secs(24 * 60 * 60)).contains(&span)
}

fn setting(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}
