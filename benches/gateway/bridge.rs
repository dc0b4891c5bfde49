//! The yardstick *bridge*: what one would write instead of the gateway, with the stock parts and no sessions.
//!
//! Every WebSocket opens a gRPC stream of its own to the worker, over one channel that all share. Each message becomes a
//! tree of `serde_json::Value`, then one of `google.protobuf.Struct`, and the other way round.

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use http::uri::PathAndQuery;
use prost_types::value::Kind;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_tungstenite::tungstenite::Message;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use crate::{Result, process};

const QUEUED_PACKETS: usize = 32;

/// What goes over gRPC, in both directions.
#[derive(Clone, PartialEq, prost::Message)]
struct Packet {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    r#type: String,
    #[prost(string, tag = "3")]
    reply_to: String,
    #[prost(bool, tag = "4")]
    last: bool,
    #[prost(message, optional, tag = "5")]
    payload: Option<prost_types::Struct>,
}

/// The same in JSON.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Envelope {
    id: String,
    r#type: String,
    reply_to: String,
    #[serde(rename = "final")]
    last: bool,
    payload: Map<String, Value>,
}

/// Serves until the process is ended.
pub fn serve(listen: SocketAddr, worker: SocketAddr) -> Result<()> {
    process::exit_with_parent();
    tokio::runtime::Runtime::new()?.block_on(async {
        let channel = Endpoint::from_shared(format!("http://{worker}"))?.connect_lazy();
        let listener = TcpListener::bind(listen).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            let channel = channel.clone();
            tokio::spawn(async move {
                if let Err(error) = bridge(stream, channel).await {
                    eprintln!("{error}");
                }
            });
        }
    })
}

async fn bridge(stream: TcpStream, channel: Channel) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut browser = tokio_tungstenite::accept_async(stream).await?;
    let (to_worker, packets) = mpsc::channel(QUEUED_PACKETS);
    let mut from_worker = dial(channel, packets).await?;
    loop {
        tokio::select! {
            message = browser.next() => match message.transpose()? {
                Some(Message::Text(text)) => {
                    let envelope: Envelope = serde_json::from_str(&text)?;
                    to_worker.send(packet(envelope)).await?;
                }
                Some(Message::Close(_)) | None => return Ok(()),
                Some(_) => {}
            },
            packet = from_worker.message() => match packet? {
                Some(packet) => {
                    let text = serde_json::to_string(&envelope(packet))?;
                    browser.send(Message::text(text)).await?;
                }
                None => return Ok(()),
            },
        }
    }
}

async fn dial(channel: Channel, packets: mpsc::Receiver<Packet>) -> Result<Streaming<Packet>> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await?;
    let path = PathAndQuery::from_static("/bench.Bridge/Attach");
    let codec = ProstCodec::<Packet, Packet>::default();
    let request = Request::new(ReceiverStream::new(packets));
    Ok(client.streaming(request, path, codec).await?.into_inner())
}

fn packet(envelope: Envelope) -> Packet {
    Packet {
        id: envelope.id,
        r#type: envelope.r#type,
        reply_to: envelope.reply_to,
        last: envelope.last,
        payload: Some(to_struct(envelope.payload)),
    }
}

fn envelope(packet: Packet) -> Envelope {
    Envelope {
        id: packet.id,
        r#type: packet.r#type,
        reply_to: packet.reply_to,
        last: packet.last,
        payload: packet.payload.map(from_struct).unwrap_or_default(),
    }
}

fn to_struct(map: Map<String, Value>) -> prost_types::Struct {
    let fields = map.into_iter().map(|(name, value)| (name, to_value(value)));
    prost_types::Struct {
        fields: fields.collect(),
    }
}

fn to_value(value: Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Value::String(value) => Kind::StringValue(value),
        Value::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values.into_iter().map(to_value).collect(),
        }),
        Value::Object(map) => Kind::StructValue(to_struct(map)),
    };
    prost_types::Value { kind: Some(kind) }
}

fn from_struct(map: prost_types::Struct) -> Map<String, Value> {
    let fields = map.fields.into_iter();
    fields.map(|(name, value)| (name, from_value(value))).collect()
}

fn from_value(value: prost_types::Value) -> Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::BoolValue(value)) => value.into(),
        Some(Kind::NumberValue(value)) => value.into(),
        Some(Kind::StringValue(value)) => value.into(),
        Some(Kind::ListValue(list)) => list.values.into_iter().map(from_value).collect(),
        Some(Kind::StructValue(map)) => Value::Object(from_struct(map)),
    }
}
