//! Attacks, byte by byte: each is ended with a word that says why, and a hundred well-behaved clients beside it get all their
//! answers.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use twinspan::config::Config;

use crate::harness::*;
use crate::raw::{self, frame, header, message};

const ATTACH: &str = "/twinspan.v1.Gateway/Attach";
const CALM: u32 = 0xb;
/// What the process of these tests may have, attackers and clients included.
const MOST_MEMORY: usize = 1 << 30;

/// A hundred clients, half on either face, that ask and are answered until they are told to stop.
struct Group {
    answered: Vec<watch::Receiver<u64>>,
    stop: watch::Sender<bool>,
    clients: Vec<JoinHandle<()>>,
    worker: JoinHandle<()>,
}

impl Group {
    async fn start(gateway: &Gateway) -> Self {
        let mut worker = gateway.worker(Face::Grpc, "echo", 1_000).await;
        let worker = tokio::spawn(async move {
            loop {
                let asked = worker.handed().await;
                worker.send(last(&asked, "so it is")).await;
            }
        });
        let (stop, stopped) = watch::channel(false);
        let (mut answered, mut clients) = (Vec::new(), Vec::new());
        for number in 0..100 {
            let face = if number % 2 == 0 { Face::Json } else { Face::Grpc };
            let (count, counted) = watch::channel(0);
            let session = format!("good-{number}");
            let peer = gateway.member(face, &session, "good").await;
            answered.push(counted);
            clients.push(tokio::spawn(ask(peer, session, count, stopped.clone())));
        }
        Self {
            answered,
            stop,
            clients,
            worker,
        }
    }

    /// Each of them gets two more answers, the second of which it asked for from now on.
    async fn goes_on(&mut self) {
        for counted in &mut self.answered {
            let before = *counted.borrow();
            patiently("answers", counted.wait_for(|count| *count >= before + 2))
                .await
                .unwrap();
        }
    }

    async fn ends(self) {
        self.stop.send_replace(true);
        for client in self.clients {
            patiently("the last answer", client).await.unwrap();
        }
        self.worker.abort();
    }
}

async fn ask(mut peer: Peer, session: String, count: watch::Sender<u64>, stopped: watch::Receiver<bool>) {
    while !*stopped.borrow() {
        let id = format!("q{}", *count.borrow());
        peer.send(request(&session, &id, "echo")).await;
        let (_, answer) = peer.answer(&id).await;
        assert_eq!(answer.body, twinspan::frame::Body::Text("so it is".into()));
        count.send_modify(|count| *count += 1);
    }
}

/// Carries out the attack beside a hundred clients that go on all the while.
async fn beside_a_hundred(change: impl FnOnce(&mut Config), attack: impl AsyncFnOnce(&Gateway)) {
    let gateway = Gateway::with(change).await;
    let mut group = Group::start(&gateway).await;
    group.goes_on().await;
    attack(&gateway).await;
    group.goes_on().await;
    let (resident, _) = gateway.router.memory();
    assert!(resident < MOST_MEMORY, "{resident}");
    group.ends().await;
    gateway.stopped().await;
}

/// What the gateway's last word to an HTTP/2 peer is that sends this.
async fn http2(gateway: &Gateway, bytes: &[u8]) -> Option<(u32, String)> {
    let socket = raw::connect(gateway.address).await;
    let heard = raw::last_words(socket, &[&raw::hello(), bytes].concat()).await;
    raw::goaway(&heard)
}

fn streams(count: u32, mut frames: impl FnMut(u32) -> Vec<u8>) -> Vec<u8> {
    (0..count).flat_map(|number| frames(2 * number + 1)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_are_opened_and_reset_are_bounded_by_whatever_trick() {
    let call = raw::call(ATTACH);
    let opened = |stream| frame(raw::HEADERS, raw::END_HEADERS, stream, &call);
    let most = (1_u32 << 31) - 1;
    let with_length = [raw::call(ATTACH), header("content-length", "1")].concat();
    let rapid = streams(3_000, |stream| {
        [opened(stream), frame(raw::RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    });
    let overflow = streams(3_000, |stream| {
        [
            opened(stream),
            frame(raw::WINDOW_UPDATE, 0, stream, &most.to_be_bytes()),
        ]
        .concat()
    });
    let dependent = streams(3_000, |stream| {
        let itself = [&stream.to_be_bytes()[..], &[0]].concat();
        [opened(stream), frame(raw::PRIORITY, 0, stream, &itself)].concat()
    });
    let longer = streams(3_000, |stream| {
        let opened = frame(raw::HEADERS, raw::END_HEADERS, stream, &with_length);
        [opened, frame(raw::DATA, 0, stream, b"too much")].concat()
    });
    beside_a_hundred(
        |config| config.limits.http2_resets_per_second = 20,
        async |gateway| {
            for (what, bytes) in [
                ("reset", rapid),
                ("overflow", overflow),
                ("dependent", dependent),
                ("longer", longer),
            ] {
                match http2(gateway, &bytes).await {
                    Some((code, text)) => assert_eq!(code, CALM, "{what}: {text}"),
                    // Within a frame, nothing can be said any more.
                    None => assert!(gateway.router.floods() > 0, "{what}"),
                }
            }
            assert!(
                gateway.router.floods() > 0,
                "the gateway's own count, beside that of its library"
            );
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_bring_nothing_are_bounded() {
    let floods = [
        ("PING", frame(raw::PING, 0, 0, &[7; 8])),
        ("SETTINGS", frame(raw::SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])),
        ("PRIORITY", frame(raw::PRIORITY, 0, 5, &[0, 0, 0, 3, 9])),
        ("WINDOW_UPDATE", frame(raw::WINDOW_UPDATE, 0, 0, &1_u32.to_be_bytes())),
        ("unknown", frame(0x42, 0, 0, b"?")),
    ];
    beside_a_hundred(
        |_| {},
        async |gateway| {
            for (what, frame) in floods {
                let (code, text) = http2(gateway, &frame.repeat(10_000)).await.expect(what);
                assert_eq!(code, CALM, "{what}: {text}");
                assert!(text.contains("limits.http2_control_per_second (500)"), "{what}: {text}");
            }
            let open = frame(raw::HEADERS, raw::END_HEADERS, 1, &raw::call(ATTACH));
            let empty = frame(raw::DATA, 0, 1, &[]).repeat(10_000);
            let (code, _) = http2(gateway, &[open, empty].concat()).await.expect("empty DATA");
            assert_eq!(code, CALM);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_without_an_end_or_a_measure_are_bounded() {
    beside_a_hundred(
        |_| {},
        async |gateway| {
            for (size, what) in [(0, "empty"), (1, "small"), (16_000, "large")] {
                let part = vec![b'x'; size];
                let begin = frame(raw::HEADERS, 0, 1, &raw::call(ATTACH));
                let flood = frame(raw::CONTINUATION, 0, 1, &part).repeat(2_000);
                let (code, text) = http2(gateway, &[begin, flood].concat()).await.expect(what);
                assert!([CALM, 1, 9].contains(&code), "{what}: {code} {text}");
            }
            // One large header that is remembered, and named a thousand times: RFC 7541 §6.2.1, §6.1.
            let value = "v".repeat(3_900);
            let mut block = raw::call(ATTACH);
            block.extend(header("x-bomb", &value).iter().enumerate().map(|(at, byte)| match at {
                0 => 0x40,
                _ => *byte,
            }));
            block.extend([0x80 | 62; 1_000]);
            let mut socket = raw::connect(gateway.address).await;
            let bomb = frame(raw::HEADERS, raw::END_HEADERS, 1, &block);
            socket.write_all(&[raw::hello(), bomb].concat()).await.unwrap();
            let mut heard = Vec::new();
            let refused = async {
                loop {
                    let mut scratch = [0; 4096];
                    match socket.read(&mut scratch).await.unwrap() {
                        0 => return,
                        count => heard.extend_from_slice(&scratch[..count]),
                    }
                    if raw::frames(&heard)
                        .iter()
                        .any(|(kind, stream, _)| *kind == raw::HEADERS && *stream == 1)
                    {
                        return;
                    }
                }
            };
            patiently("the refusal of the bomb", refused).await;
            assert_eq!(*gateway.router.link_count().borrow(), 101, "it opened nothing");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_ended_in_every_phase() {
    let half = frame(raw::HEADERS, 0, 1, &raw::call(ATTACH));
    let phases = [
        ("nothing", Vec::new()),
        ("half a request line", b"GET /heal".to_vec()),
        (
            "half the headers",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: y".to_vec(),
        ),
        ("half the preface", raw::PREFACE[..11].to_vec()),
        ("no SETTINGS", raw::PREFACE.to_vec()),
        ("nothing asked", raw::hello()),
        ("half the headers in HTTP/2", [raw::hello(), half].concat()),
        (
            "the second request's headers",
            b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /hea".to_vec(),
        ),
    ];
    let quick = |config: &mut Config| config.limits.handshake = Duration::from_millis(300);
    beside_a_hundred(quick, async |gateway| {
        let before = gateway.router.admission().sockets();
        for (what, bytes) in phases {
            eprintln!("{what}");
            raw::last_words(raw::connect(gateway.address).await, &bytes).await;
        }
        let silent: Vec<_> = futures_util::future::join_all((0..200).map(|_| raw::connect(gateway.address))).await;
        for socket in silent {
            assert_eq!(raw::last_words(socket, b"").await, b"");
        }
        let gone = async {
            while gateway.router.admission().sockets() > before {
                tokio::task::yield_now().await;
            }
        };
        patiently("the sockets to be given back", gone).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_websocket_frames_are_bounded() {
    let fragments = [message(0x01, b"a"), message(0x00, b"a").repeat(10_000)].concat();
    let empty = [message(0x01, b""), message(0x00, b"").repeat(10_000)].concat();
    let floods = [
        ("fragments", fragments, "limits.fragments"),
        ("empty fragments", empty, "pings, pongs and empty fragments"),
        ("pings", message(0x89, b"!").repeat(10_000), "pings, pongs"),
        ("pongs", message(0x8a, b"").repeat(10_000), "pings, pongs"),
    ];
    beside_a_hundred(
        |_| {},
        async |gateway| {
            for (what, bytes, _) in floods {
                let socket = raw::connect(gateway.address).await;
                let heard = raw::last_words(socket, &[raw::UPGRADE, &bytes].concat()).await;
                let (code, text) = raw::close(&heard).expect(what);
                assert_eq!(code, 1008, "{what}: {text}");
                assert!(text.starts_with("PROTOCOL_FLOOD"), "{what}: {text}");
            }
            assert_eq!(gateway.router.floods(), 4);
        },
    )
    .await;
}

#[tokio::test]
async fn broken_frames_of_websocket_get_their_close_code() {
    let gateway = Gateway::start().await;
    let unmasked = vec![0x81, 1, b'a'];
    let code = |code: u16| message(0x88, &code.to_be_bytes());
    for (what, bytes, expected) in [
        ("unmasked", unmasked, 1002),
        ("reserved bit 1", message(0xc1, b"a"), 1002),
        ("reserved bit 2", message(0xa1, b"a"), 1002),
        ("reserved bit 3", message(0x91, b"a"), 1002),
        ("reserved opcode", message(0x83, b"a"), 1002),
        ("reserved control opcode", message(0x8b, b"a"), 1002),
        ("fragmented ping", message(0x09, b"a"), 1002),
        ("ping of 126 bytes", message(0x89, &[0; 126]), 1002),
        ("ping of a terabyte", raw::head(0x89, 1 << 40), 1002),
        ("close of 126 bytes", message(0x88, &[3; 126]), 1002),
        ("continuation of nothing", message(0x80, b"a"), 1002),
        (
            "text within text",
            [message(0x01, b"a"), message(0x81, b"b")].concat(),
            1002,
        ),
        ("close of one byte", message(0x88, b"a"), 1002),
        ("close 0", code(0), 1002),
        ("close 999", code(999), 1002),
        ("close 1004", code(1004), 1002),
        ("close 1005", code(1005), 1002),
        ("close 1006", code(1006), 1002),
        ("close 1015", code(1015), 1002),
        ("close 1016", code(1016), 1002),
        ("close 2999", code(2999), 1002),
        ("close 5000", code(5000), 1002),
        ("close 1000", code(1000), 1000),
        ("close 3000", code(3000), 3000),
        ("close 4999", code(4999), 4999),
        ("close with bad text", message(0x88, &[0x03, 0xe8, 0xff, 0xff]), 1007),
        ("bad text", message(0x81, &[0xff]), 1007),
        (
            "text that cannot become good",
            [message(0x01, &[0xce, 0xba]), message(0x00, &[0xed, 0xa0])].concat(),
            1007,
        ),
        (
            "text that ends too early",
            [message(0x01, b"a"), message(0x80, &[0xce])].concat(),
            1007,
        ),
        ("a message too large", raw::head(0x81, 2 << 20), 1009),
        (
            "fragments too large together",
            [message(0x02, &[0; 600_000]), message(0x80, &[0; 600_000])].concat(),
            1009,
        ),
    ] {
        let socket = raw::connect(gateway.address).await;
        let heard = raw::last_words(socket, &[raw::UPGRADE, &bytes].concat()).await;
        let (code, text) = raw::close(&heard).unwrap_or_else(|| panic!("{what}: no close frame"));
        assert_eq!(code, expected, "{what}: {text}");
    }
    gateway.stopped().await;
}

#[tokio::test]
async fn text_split_within_a_character_is_text() {
    let gateway = Gateway::start().await;
    let json = r#"{"sessionId":"s","id":"x","text":"€"}"#.as_bytes();
    let at = json.len() - 4;
    let bytes = [
        raw::UPGRADE.to_vec(),
        message(0x01, &json[..at]),
        message(0x80, &json[at..]),
        message(0x88, &1000_u16.to_be_bytes()),
    ]
    .concat();
    let heard = raw::last_words(raw::connect(gateway.address).await, &bytes).await;
    assert!(String::from_utf8_lossy(&heard).contains(r#""accepted""#));
    assert_eq!(raw::close(&heard).unwrap().0, 1000);
    gateway.stopped().await;
}

#[tokio::test]
async fn requests_whose_length_is_told_twice_do_not_smuggle() {
    let gateway = Gateway::start().await;
    let hidden = "GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n";
    for (what, head, body) in [
        (
            "both",
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            format!("0\r\n\r\n{hidden}"),
        ),
        (
            "both, the other way round",
            "Transfer-Encoding: chunked\r\nContent-Length: 39\r\n",
            format!("0\r\n\r\n{hidden}"),
        ),
        (
            "two lengths",
            "Content-Length: 0\r\nContent-Length: 34\r\n",
            hidden.to_owned(),
        ),
        ("a list of lengths", "Content-Length: 0, 34\r\n", hidden.to_owned()),
        ("a signed length", "Content-Length: +0\r\n", hidden.to_owned()),
        (
            "an unknown coding",
            "Transfer-Encoding: chunked, identity\r\n",
            format!("0\r\n\r\n{hidden}"),
        ),
        ("a space before the colon", "Content-Length : 34\r\n", hidden.to_owned()),
        ("a folded line", "X-A: b\r\n Content-Length: 34\r\n", hidden.to_owned()),
    ] {
        let request = format!("POST /healthz HTTP/1.1\r\nHost: x\r\n{head}\r\n{body}");
        let heard = raw::last_words(raw::connect(gateway.address).await, request.as_bytes()).await;
        let heard = String::from_utf8_lossy(&heard);
        assert!(!heard.contains("/hidden"), "{what}: {heard}");
        assert_eq!(heard.matches("HTTP/1.1 ").count(), 1, "{what}: {heard}");
    }
    gateway.stopped().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_read_nothing_hold_little() {
    let small = |config: &mut Config| {
        config.retention.bytes = 2 << 20;
        config.limits.heartbeat = Duration::from_secs(600);
    };
    beside_a_hundred(small, async |gateway| {
        let mut held = Vec::new();
        for number in 0..20 {
            let mut socket = raw::connect(gateway.address).await;
            let join = r#"{"sessionId":"loud","join":{"memberId":"NAME","afterSeq":"0"}}"#;
            let join = join.replace("NAME", &format!("ws{number}"));
            socket
                .write_all(&[raw::UPGRADE, &message(0x81, join.as_bytes())].concat())
                .await
                .unwrap();
            held.push(socket);
        }
        for number in 0..20 {
            let mut socket = raw::connect(gateway.address).await;
            // No window at all: SETTINGS_INITIAL_WINDOW_SIZE = 0.
            let settings = frame(raw::SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
            let open = frame(raw::HEADERS, raw::END_HEADERS, 1, &raw::call(ATTACH));
            let join = twinspan::frame::pb::Join {
                member_id: format!("grpc{number}"),
                after_seq: Some(0),
                ..Default::default()
            };
            let mut wire = Vec::new();
            twinspan::frame::Frame {
                session_id: "loud".into(),
                body: twinspan::frame::Body::Control(Box::new(twinspan::frame::Control::Join(join))),
                ..Default::default()
            }
            .write_wire(&mut wire);
            let prefix = [&[0][..], &(wire.len() as u32).to_be_bytes()].concat();
            let join = frame(raw::DATA, 0, 1, &[prefix, wire].concat());
            socket
                .write_all(&[raw::PREFACE.to_vec(), settings, open, join].concat())
                .await
                .unwrap();
            held.push(socket);
        }
        let mut loud = gateway.reader(Face::Grpc, "loud").await;
        let here = async {
            loop {
                let session = twinspan::frame::pb::GetRequest {
                    session_id: "loud".to_owned(),
                };
                let session = gateway.sessions().await.get(session).await.unwrap().into_inner();
                if session.member_count >= 41 {
                    return;
                }
            }
        };
        patiently("all who read nothing", here).await;
        let text_of_64k = "x".repeat(64 << 10);
        for number in 0..400 {
            let id = format!("l{number}");
            loud.send(text("loud", &id, &text_of_64k)).await;
            loud.acked(&id).await;
        }
        assert_eq!(held.len(), 40);
    })
    .await;
}
