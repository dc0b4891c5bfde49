//! Typed messages: `google.protobuf.Any`, between protobuf and JSON.
//!
//! Owns the descriptors of the types that the gateway knows. It must never refuse what only passes between protobuf members
//! because its type is unknown.

use std::fmt;
use std::path::Path;
use std::sync::OnceLock;

use bytes::Bytes;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, MessageDescriptor, ReflectMessage, SerializeOptions, Value,
};

use super::protojson::{Fault, Reader, shortened};
use super::scan::{Checker, MAX_DEPTH};
use super::{Any, Body, DESCRIPTORS, Frame, Str};
use crate::error::{Reason, Refusal};

/// How many levels of messages a typed message may have: as many as protobuf libraries decode.
const LEVELS: u32 = 100;
/// As how many of them an Any counts: each costs its writer a copy of all that it holds.
const LEVELS_OF_ANY: u32 = 10;

/// The types of messages that the gateway can carry between protobuf and JSON.
#[derive(Clone)]
pub struct Types {
    pool: DescriptorPool,
}

impl fmt::Debug for Types {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Types")
            .field("messages", &self.pool.all_messages().len())
            .finish()
    }
}

/// The well-known types, and those of the protocol itself.
impl Default for Types {
    fn default() -> Self {
        static BUILT_IN: OnceLock<DescriptorPool> = OnceLock::new();
        let pool = BUILT_IN.get_or_init(|| {
            let mut pool = DescriptorPool::global();
            pool.decode_file_descriptor_set(DESCRIPTORS)
                .expect("the compiled proto must be valid");
            pool
        });
        Self { pool: pool.clone() }
    }
}

impl Types {
    /// The built-in types and those of some files, each a `google.protobuf.FileDescriptorSet` as `protoc
    /// --descriptor_set_out` and `buf build` write them, imports included.
    pub fn load(files: &[impl AsRef<Path>]) -> Result<Self, String> {
        let mut types = Self::default();
        for file in files {
            let path = file.as_ref();
            let add = |types: &mut Self| {
                let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
                types.add_file_descriptor_set(&bytes)
            };
            add(&mut types).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(types)
    }

    /// Adds the types of a `google.protobuf.FileDescriptorSet`.
    pub fn add_file_descriptor_set(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut pool = self.pool.clone();
        pool.decode_file_descriptor_set(bytes)
            .map_err(|error| error.to_string())?;
        self.pool = pool;
        Ok(())
    }

    /// The type that a URL names, if it is known.
    fn get(&self, type_url: &str) -> Option<MessageDescriptor> {
        let (_, name) = type_url.rsplit_once('/')?;
        self.pool.get_message_by_name(name)
    }

    /// Checks a message that came as protobuf: if its type is known, it must be of that type, and JSON able to express it.
    pub(super) fn check(&self, any: &Any) -> Result<(), Refusal> {
        if self.get(&any.type_url).is_none() {
            return Ok(());
        }
        let json = self
            .to_json(any)
            .map_err(|error| refused(&format!("is not a {} that JSON could express: {error}", any.type_url)))?;
        let text = std::str::from_utf8(&json).map_err(|_| refused("cannot be written as JSON"))?;
        check_text(text)
    }

    /// Writes a message of a known type as JSON.
    fn to_json(&self, any: &Any) -> Result<Vec<u8>, String> {
        self.check_levels(&any.type_url, any.value.clone(), LEVELS)?;
        let outer = self
            .pool
            .get_message_by_name("google.protobuf.Any")
            .ok_or("Any must be known")?;
        let raw = prost_types::Any {
            type_url: any.type_url.to_string(),
            value: any.value.to_vec(),
        };
        let message = DynamicMessage::decode(outer, &*raw.encode_to_vec()).map_err(|error| error.to_string())?;
        let mut serializer = serde_json::Serializer::new(Vec::new());
        message
            .serialize_with_options(&mut serializer, &SerializeOptions::new())
            .map_err(|error| error.to_string())?;
        Ok(serializer.into_inner())
    }

    /// Checks that a message can be decoded, and how deep it is. Messages inside an Any are not part of the message that
    /// holds it, so that a decoder's own limit does not see them; what writes them would follow them to any depth.
    fn check_levels(&self, type_url: &str, value: Bytes, levels: u32) -> Result<(), String> {
        let Some(descriptor) = self.get(type_url) else {
            return Err(format!("the gateway knows no type {type_url}"));
        };
        let message = DynamicMessage::decode(descriptor, value).map_err(|error| error.to_string())?;
        self.check_levels_of(&message, levels)
    }

    fn check_levels_of(&self, message: &DynamicMessage, levels: u32) -> Result<(), String> {
        let levels = levels.checked_sub(1).ok_or("it is nested too deep")?;
        if message.descriptor().full_name() == "google.protobuf.Any" {
            let any: prost_types::Any = message.transcode_to().map_err(|error| error.to_string())?;
            let levels = levels.checked_sub(LEVELS_OF_ANY).ok_or("it is nested too deep")?;
            return self.check_levels(&any.type_url, any.value.into(), levels);
        }
        let check = |value: &Value| match value {
            Value::Message(inner) => self.check_levels_of(inner, levels),
            _ => Ok(()),
        };
        message.fields().try_for_each(|(_, value)| match value {
            Value::List(items) => items.iter().try_for_each(check),
            Value::Map(entries) => entries.values().try_for_each(check),
            value => check(value),
        })
    }

    /// Reads a message from JSON.
    pub(super) fn read_json(&self, reader: &mut Reader<'_>) -> Result<Any, Fault> {
        let text = reader.skip(MAX_DEPTH).map_err(Fault::payload)?;
        let type_url = type_url(text)?;
        if self.get(&type_url).is_none() {
            let name = shortened(&type_url);
            let message = format!("the gateway knows no type {name}");
            return Err(Refusal::new(Reason::UnknownType, message).with("type", name).into());
        }
        let any = self
            .parse(text)
            .map_err(|error| refused(&format!("is not a {type_url}: {error}")))?;
        // What was read must be fit to be written again; reading alone does not promise that.
        self.check(&any)?;
        Ok(any)
    }

    fn parse(&self, text: &str) -> Result<Any, String> {
        let outer = self
            .pool
            .get_message_by_name("google.protobuf.Any")
            .ok_or("Any must be known")?;
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let message = DynamicMessage::deserialize_with_options(outer, &mut deserializer, &DeserializeOptions::new())
            .map_err(|error| error.to_string())?;
        let raw: prost_types::Any = message.transcode_to().map_err(|error| error.to_string())?;
        Ok(Any {
            type_url: Str::from(raw.type_url),
            value: raw.value.into(),
        })
    }

    /// Writes a message as JSON; one whose type is unknown as base64.
    pub(super) fn write_json(&self, any: &Any, out: &mut Vec<u8>) {
        let json = if self.get(&any.type_url).is_some() {
            self.to_json(any).ok()
        } else {
            None
        };
        match json {
            Some(json) => out.extend_from_slice(&json),
            None => any.write_opaque_json(out),
        }
    }
}

impl Frame {
    /// Checks a typed message that came inside a generated message, where decoding cannot do it.
    pub fn check_types(&self, types: &Types) -> Result<(), Refusal> {
        match &self.body {
            Body::Message(any) => types.check(any),
            _ => Ok(()),
        }
    }
}

#[cold]
fn refused(message: &str) -> Refusal {
    Refusal::field("message", shortened(message))
}

/// What is expressed as JSON must be fit to be read again.
fn check_text(text: &str) -> Result<(), Refusal> {
    match Checker::new(text).value(0, MAX_DEPTH) {
        Ok(_) => Ok(()),
        Err(flaw) => Err(refused(flaw.what.text())),
    }
}

/// The `@type` of a JSON object that was checked.
fn type_url(text: &str) -> Result<String, Fault> {
    let mut reader = Reader::new(text, None);
    reader.open()?;
    let mut first = true;
    while let Some(name) = reader.member(&mut first)? {
        if name == "@type" {
            return reader.string();
        }
        reader.skip(MAX_DEPTH)?;
    }
    Err(Fault::invalid("must have an @type"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(name: &str, value: &[u8]) -> Any {
        Any {
            type_url: Str::from(format!("type.googleapis.com/{name}")),
            value: Bytes::copy_from_slice(value),
        }
    }

    fn json(types: &Types, any: &Any) -> String {
        let mut out = Vec::new();
        types.write_json(any, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn unknown_types_pass_as_they_are() {
        let types = Types::default();
        let any = any("no.such.Type", &[0xFF]);
        assert_eq!(types.check(&any), Ok(()));
        assert_eq!(
            json(&types, &any),
            r#"{"@type":"type.googleapis.com/no.such.Type","value":"/w=="}"#
        );
    }

    #[test]
    fn known_types_must_be_what_they_say() {
        let types = Types::default();
        assert!(types.check(&any("twinspan.v1.Ping", &[0xFF])).is_err());
        assert_eq!(types.check(&any("twinspan.v1.Ping", &[0x0A, 1, b'x'])), Ok(()));
        // A NaN, which JSON cannot express inside a Value; a Timestamp out of range; a type unknown inside a known one.
        let nan = [&[0x11][..], &f64::NAN.to_le_bytes()].concat();
        assert!(types.check(&any("google.protobuf.Value", &nan)).is_err());
        assert!(
            types
                .check(&any(
                    "google.protobuf.Timestamp",
                    &[8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F]
                ))
                .is_err()
        );
        assert!(
            types
                .check(&any("google.protobuf.Any", &[0x0A, 3, b'a', b'/', b'b']))
                .is_err()
        );
    }

    #[test]
    fn messages_within_messages_have_an_end() {
        let types = Types::default();
        let mut nested = any("twinspan.v1.Ping", &[]);
        for levels in 1..=5000 {
            let raw = prost_types::Any {
                type_url: nested.type_url.to_string(),
                value: nested.value.to_vec(),
            };
            nested = any("google.protobuf.Any", &raw.encode_to_vec());
            if levels <= 5 {
                assert_eq!(types.check(&nested), Ok(()));
                assert!(!json(&types, &nested).contains("\"value\":\""));
            }
        }
        assert!(types.check(&nested).is_err());
        assert!(json(&types, &nested).contains("\"value\":\""));
    }

    #[test]
    fn types_are_added() {
        let mut types = Types::default();
        let file = prost_types::FileDescriptorProto {
            name: Some("acme.proto".into()),
            package: Some("acme".into()),
            message_type: vec![prost_types::DescriptorProto {
                name: Some("Order".into()),
                ..Default::default()
            }],
            ..Default::default()
        };
        let set = prost_types::FileDescriptorSet { file: vec![file] };
        assert!(types.add_file_descriptor_set(&[0xFF]).is_err());
        types.add_file_descriptor_set(&set.encode_to_vec()).unwrap();
        assert_eq!(
            json(&types, &any("acme.Order", &[])),
            r#"{"@type":"type.googleapis.com/acme.Order"}"#
        );
        assert!(
            Types::load(&["/no/such/file"])
                .unwrap_err()
                .starts_with("/no/such/file: ")
        );
    }
}
