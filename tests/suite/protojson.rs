//! Frames between JSON and protobuf, held against an independent implementation (prost-reflect) and the golden files.
//!
//! Owns random frames of every body. It must never take the answer from the code that it tests.

use bytes::Bytes;
use prost::Message;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor,
    ReflectMessage, SerializeOptions, Value,
};
use twinspan::error::Reason;
use twinspan::frame::{Body, Frame, Payload, Rules, Str, Types};

use crate::harness::Random;

const ROUNDS: u64 = 4000;

impl Random {
    fn integer(&mut self) -> u64 {
        let bits = self.below(65);
        self.next().checked_shr(64 - bits as u32).unwrap_or(0)
    }

    fn number(&mut self) -> f64 {
        match self.below(5) {
            0 => self.below(2000) as f64 - 1000.0,
            1 => self.below(2_000_000) as f64 / 1000.0 - 1000.0,
            2 => self.integer() as f64,
            3 => self.next() as f64 / u64::MAX as f64,
            _ => Some(f64::from_bits(self.next()))
                .filter(|number| number.is_finite())
                .unwrap_or(0.5),
        }
    }
}

fn set(message: &mut DynamicMessage, name: &str, value: Value) {
    message.set_field_by_name(name, value);
}

/// Any message: times within their range, Values that everybody can read, otherwise whatever the fields can hold.
fn message(random: &mut Random, descriptor: &MessageDescriptor, depth: u64) -> DynamicMessage {
    let mut message = DynamicMessage::new(descriptor.clone());
    match descriptor.full_name() {
        "google.protobuf.Timestamp" => {
            set(
                &mut message,
                "seconds",
                Value::I64(random.below(315_537_897_600) as i64 - 62_135_596_800),
            );
            set(&mut message, "nanos", Value::I32(nanos(random)));
        }
        "google.protobuf.Duration" => {
            let sign = if random.one_in(2) { -1 } else { 1 };
            set(
                &mut message,
                "seconds",
                Value::I64(random.below(315_576_000_000) as i64 * sign),
            );
            set(&mut message, "nanos", Value::I32(nanos(random) * sign as i32));
        }
        "google.protobuf.Value" => value(random, &mut message, depth),
        "google.protobuf.Any" => any(random, &mut message, depth),
        _ => {
            for oneof in descriptor.oneofs().filter(|oneof| !oneof.is_synthetic()) {
                let fields: Vec<_> = oneof.fields().collect();
                let chosen = random.pick(&fields).clone();
                message.set_field(&chosen, one(random, &chosen, depth));
            }
            for field in descriptor.fields() {
                let in_oneof = field.containing_oneof().is_some_and(|oneof| !oneof.is_synthetic());
                if !in_oneof && random.one_in(2) {
                    let value = whole(random, &field, depth);
                    message.set_field(&field, value);
                }
            }
        }
    }
    message
}

fn nanos(random: &mut Random) -> i32 {
    let digits = random.below(1000) as i32;
    *random.pick(&[0, digits * 1_000_000, digits * 1000, digits, 999_999_999])
}

fn value(random: &mut Random, message: &mut DynamicMessage, depth: u64) {
    let kind = if depth > 5 { random.below(4) } else { random.below(8) };
    match kind {
        0 => set(message, "null_value", Value::EnumNumber(0)),
        1 => set(message, "bool_value", Value::Bool(random.one_in(2))),
        2 => set(message, "string_value", Value::String(random.text())),
        3 => set(message, "number_value", Value::F64(random.number())),
        kind => {
            let name = if kind < 6 { "struct_value" } else { "list_value" };
            let field = message.descriptor().get_field_by_name(name).unwrap();
            let value = one(random, &field, depth + 1);
            message.set_field(&field, value);
        }
    }
}

fn any(random: &mut Random, message: &mut DynamicMessage, depth: u64) {
    let names = [
        "twinspan.v1.Ping",
        "twinspan.v1.Joined",
        "twinspan.v1.Session",
        "google.protobuf.Duration",
        "google.protobuf.Timestamp",
        "google.protobuf.Struct",
        "google.protobuf.Value",
        "google.protobuf.Any",
    ];
    let count = if depth > 3 { names.len() - 1 } else { names.len() };
    let name = *random.pick(&names[..count]);
    let descriptor = message.descriptor().parent_pool().get_message_by_name(name).unwrap();
    let inner = self::message(random, &descriptor, depth + 1);
    set(
        message,
        "type_url",
        Value::String(format!("type.googleapis.com/{name}")),
    );
    set(message, "value", Value::Bytes(inner.encode_to_vec().into()));
}

fn whole(random: &mut Random, field: &FieldDescriptor, depth: u64) -> Value {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else {
            unreachable!()
        };
        let value = entry.map_entry_value_field();
        let entries = (0..random.below(4)).map(|_| (MapKey::String(random.text()), one(random, &value, depth)));
        return Value::Map(entries.collect());
    }
    if field.is_list() {
        return Value::List((0..random.below(4)).map(|_| one(random, field, depth)).collect());
    }
    one(random, field, depth)
}

fn one(random: &mut Random, field: &FieldDescriptor, depth: u64) -> Value {
    match field.kind() {
        Kind::Bool => Value::Bool(random.one_in(2)),
        Kind::Uint32 => Value::U32(random.integer() as u32),
        Kind::Uint64 => Value::U64(random.integer()),
        Kind::String => Value::String(random.text()),
        Kind::Bytes => Value::Bytes(random.text().into_bytes().into()),
        Kind::Enum(descriptor) => {
            let numbers: Vec<_> = descriptor.values().map(|value| value.number()).collect();
            Value::EnumNumber(if random.one_in(8) { -7 } else { *random.pick(&numbers) })
        }
        Kind::Message(descriptor) if field.is_map() => unreachable!("{}", descriptor.full_name()),
        Kind::Message(descriptor) if descriptor.full_name() == "google.protobuf.Struct" => {
            let mut message = DynamicMessage::new(descriptor.clone());
            let fields = descriptor.get_field_by_name("fields").unwrap();
            let value = whole(random, &fields, depth);
            message.set_field(&fields, value);
            Value::Message(message)
        }
        Kind::Message(descriptor) if descriptor.full_name() == "google.protobuf.ListValue" => {
            let mut message = DynamicMessage::new(descriptor.clone());
            let values = descriptor.get_field_by_name("values").unwrap();
            let value = whole(random, &values, depth);
            message.set_field(&values, value);
            Value::Message(message)
        }
        Kind::Message(descriptor) => Value::Message(message(random, &descriptor, depth)),
        other => panic!("no field of a frame is a {other:?}"),
    }
}

/// Another implementation of both forms.
struct Oracle(MessageDescriptor);

impl Oracle {
    fn new() -> Self {
        let mut pool = DescriptorPool::global();
        pool.decode_file_descriptor_set(twinspan::frame::DESCRIPTORS).unwrap();
        Self(pool.get_message_by_name("twinspan.v1.Frame").unwrap())
    }

    fn json(message: &DynamicMessage, options: &SerializeOptions) -> String {
        let mut serializer = serde_json::Serializer::new(Vec::new());
        message.serialize_with_options(&mut serializer, options).unwrap();
        String::from_utf8(serializer.into_inner()).unwrap()
    }

    fn read_json(&self, text: &str) -> DynamicMessage {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let options = DeserializeOptions::new();
        DynamicMessage::deserialize_with_options(self.0.clone(), &mut deserializer, &options)
            .unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Any frame. It has been over the wire, where fields that are set to their default are as good as unset.
    fn random(&self, random: &mut Random) -> DynamicMessage {
        self.read_wire(&message(random, &self.0, 0).encode_to_vec())
    }

    fn read_wire(&self, wire: &[u8]) -> DynamicMessage {
        DynamicMessage::decode(self.0.clone(), wire).unwrap()
    }
}

/// Compares two frames. Typed messages hold bytes, in which the order of a map is anybody's choice, so these are compared by
/// their JSON.
fn assert_same(ours: &DynamicMessage, theirs: &DynamicMessage, seed: u64) {
    let options = SerializeOptions::new();
    let (ours_json, theirs_json) = (Oracle::json(ours, &options), Oracle::json(theirs, &options));
    let is_typed = ours.has_field_by_name("message") && theirs.has_field_by_name("message");
    let is_same = if is_typed {
        plain(&ours_json) == plain(&theirs_json)
    } else {
        ours == theirs
    };
    assert!(is_same, "seed {seed}\nours:   {ours_json}\ntheirs: {theirs_json}");
}

/// Control frames are left out: of these, the bytes count, in which maps have an order.
fn assert_same_substance(one: &Frame, other: &Frame, seed: u64) {
    if !matches!(one.body, Body::Control(_)) {
        let types = Types::default();
        assert_eq!(
            one.substance(&types),
            other.substance(&types),
            "seed {seed}\n{one:?}\n{other:?}"
        );
    }
}

fn read_json(text: &str, types: &Types) -> Frame {
    let rules = Rules {
        ignore_unknown: false,
        types,
    };
    Frame::from_json(&Str::from(text), &rules).unwrap_or_else(|refused| panic!("{refused:?}: {text}"))
}

fn read_wire(wire: &[u8], types: &Types) -> Frame {
    let rules = Rules {
        ignore_unknown: false,
        types,
    };
    Frame::from_wire(&Bytes::copy_from_slice(wire), &rules).unwrap_or_else(|refused| panic!("{refused:?}"))
}

fn json(frame: &Frame, types: &Types) -> String {
    let mut out = Vec::new();
    frame.write_json(&mut out, types);
    String::from_utf8(out).unwrap()
}

fn wire(frame: &Frame) -> Vec<u8> {
    let mut out = Vec::new();
    frame.write_wire(&mut out);
    assert_eq!(out.len(), frame.wire_len());
    assert_eq!(frame.encode_to_vec().len(), out.len());
    out
}

/// JSON, with all its numbers as doubles.
fn plain(text: &str) -> serde_json::Value {
    fn walk(value: serde_json::Value) -> serde_json::Value {
        use serde_json::Value;
        match value {
            Value::Number(number) => (number.as_f64().unwrap() + 0.0).into(),
            Value::Array(items) => Value::Array(items.into_iter().map(walk).collect()),
            Value::Object(members) => {
                Value::Object(members.into_iter().map(|(name, value)| (name, walk(value))).collect())
            }
            other => other,
        }
    }
    walk(serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

#[test]
fn random_frames_are_the_same_in_both_forms() {
    let (oracle, types) = (Oracle::new(), Types::default());
    let spellings = [
        SerializeOptions::new(),
        SerializeOptions::new()
            .use_proto_field_name(true)
            .use_enum_numbers(true),
        SerializeOptions::new().stringify_64_bit_integers(false),
    ];
    for seed in 0..ROUNDS {
        let original = oracle.random(&mut Random(seed));
        let canonical = Oracle::json(&original, &spellings[0]);
        let from_wire = read_wire(&original.encode_to_vec(), &types);
        assert_same(&oracle.read_wire(&wire(&from_wire)), &original, seed);
        let ours = json(&from_wire, &types);
        assert_eq!(plain(&ours), plain(&canonical), "seed {seed}");
        assert_same(&oracle.read_json(&ours), &original, seed);
        for options in &spellings {
            let text = Oracle::json(&original, options);
            let from_json = read_json(&text, &types);
            assert_same(&oracle.read_wire(&wire(&from_json)), &original, seed);
            assert_eq!(plain(&json(&from_json, &types)), plain(&canonical), "seed {seed}");
            assert_same_substance(&from_json, &from_wire, seed);
        }
        assert_same(&oracle.read_wire(&wire(&read_json(&ours, &types))), &original, seed);
        assert_eq!(
            Frame::decode(&*original.encode_to_vec()).unwrap(),
            from_wire,
            "seed {seed}"
        );
    }
}

#[test]
fn white_space_and_escapes_change_nothing() {
    let (oracle, types) = (Oracle::new(), Types::default());
    for seed in 0..ROUNDS / 4 {
        let mut random = Random(seed);
        let original = oracle.random(&mut random);
        let text = Oracle::json(&original, &SerializeOptions::new());
        let restyled = restyle(&mut random, &text);
        let frame = read_json(&restyled, &types);
        assert_same(&oracle.read_wire(&wire(&frame)), &original, seed);
        assert_same_substance(&frame, &read_json(&text, &types), seed);
    }
}

/// The oracle writes the members of objects in another order each time.
#[test]
fn payloads_say_the_same_in_both_forms() {
    let oracle = Oracle::new();
    let Kind::Message(descriptor) = oracle.0.get_field_by_name("payload").unwrap().kind() else {
        unreachable!()
    };
    let frame = |payload| Frame {
        body: Body::Payload(payload),
        ..Frame::default()
    };
    for seed in 0..ROUNDS {
        let mut random = Random(seed);
        let original = message(&mut random, &descriptor, 0);
        let wire = Payload::from_wire_value(original.encode_to_vec().into()).unwrap();
        let text = restyle(&mut random, &Oracle::json(&original, &SerializeOptions::new()));
        let text = Payload::from_json_text(Str::from(text)).unwrap();
        let canonical = Payload::from_serde(&plain(text.as_json())).unwrap();
        for other in [text, canonical] {
            assert_same_substance(&frame(other), &frame(wire.clone()), seed);
        }
    }
}

const SPACES: [&str; 4] = ["", " ", "\n\t", "\r\n"];

/// The same JSON with white space between its tokens and its text as escapes.
fn restyle(random: &mut Random, text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    let mut in_string = false;
    while let Some(char) = chars.next() {
        match char {
            '"' => in_string = !in_string,
            '\\' => {
                let escaped = chars.next().unwrap();
                out.extend([char, escaped]);
                out.extend(chars.by_ref().take(if escaped == 'u' { 4 } else { 0 }));
                continue;
            }
            _ if in_string && random.one_in(4) => {
                let mut units = [0; 2];
                for unit in char.encode_utf16(&mut units) {
                    out += &format!("\\u{unit:04X}");
                }
                continue;
            }
            '{' | '}' | '[' | ']' | ',' | ':' if !in_string => {
                out += *random.pick(&SPACES);
                out.push(char);
                out += *random.pick(&SPACES);
                continue;
            }
            _ => {}
        }
        out.push(char);
    }
    out
}

#[test]
fn broken_frames_are_refused_or_read_alike() {
    let (oracle, types) = (Oracle::new(), Types::default());
    let rules = Rules {
        ignore_unknown: false,
        types: &types,
    };
    for seed in 0..ROUNDS {
        let mut random = Random(seed);
        let original = oracle.random(&mut random);
        let mut bytes = wire(&read_wire(&original.encode_to_vec(), &types));
        let mut text = json(&read_wire(&bytes, &types), &types).into_bytes();
        for bytes in [&mut bytes, &mut text] {
            for _ in 0..=random.below(3) {
                let place = random.below(bytes.len() as u64 + 1) as usize;
                match random.below(3) {
                    0 => bytes.truncate(place),
                    1 => bytes.insert(place, *random.pick(b"\"\\{}[],:0123e-x\x00\xFF")),
                    _ if place < bytes.len() => bytes[place] = random.next() as u8,
                    _ => {}
                }
            }
        }
        if let Ok(frame) = Frame::from_wire(&Bytes::from(bytes), &rules) {
            match Frame::from_json(&Str::from(json(&frame, &types)), &rules) {
                Ok(again) => assert_same(&oracle.read_wire(&wire(&frame)), &oracle.read_wire(&wire(&again)), seed),
                // A typed message whose type was broken to one that nobody knows crosses to JSON, and not back.
                Err(refused) => {
                    assert!(matches!(frame.body, Body::Message(_)), "seed {seed}: {refused:?}");
                    assert_eq!(refused.refusal.reason, Reason::UnknownType, "seed {seed}");
                }
            }
        }
        if let Ok(text) = String::from_utf8(text)
            && let Ok(frame) = Frame::from_json(&Str::from(text), &rules)
        {
            assert_eq!(read_wire(&wire(&frame), &types), frame, "seed {seed}");
        }
    }
}

/// The lines of a golden file.
fn golden(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a golden line must be JSON"))
        .collect()
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digit = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex must be hex");
    (0..hex.len()).step_by(2).map(digit).collect()
}

#[test]
fn golden_frames_are_the_same_in_both_forms() {
    let types = Types::default();
    for golden in golden(include_str!("../golden/frames.jsonl")) {
        let name = golden["name"].as_str().unwrap_or_default();
        let text = golden["json"].as_str().unwrap_or_default();
        let bytes = from_hex(golden["hex"].as_str().unwrap_or_default());
        assert_eq!(json(&read_wire(&bytes, &types), &types), text, "{name}");
        assert_eq!(wire(&read_json(text, &types)), bytes, "{name}");
        for other in golden["accepts"].as_array().into_iter().flatten() {
            let other = other.as_str().unwrap_or_default();
            assert_eq!(wire(&read_json(other, &types)), bytes, "{name}: {other}");
        }
    }
}

#[test]
fn golden_refusals_are_refused() {
    let types = Types::default();
    let rules = Rules {
        ignore_unknown: false,
        types: &types,
    };
    for golden in golden(include_str!("../golden/refused.jsonl")) {
        let read = match (golden["json"].as_str(), golden["hex"].as_str()) {
            (Some(text), _) => Frame::from_json(&Str::from(text), &rules),
            (None, hex) => Frame::from_wire(&Bytes::from(from_hex(hex.unwrap_or_default())), &rules),
        };
        let reason = read.err().map(|refused| refused.refusal.reason.to_string());
        assert_eq!(reason.as_deref(), golden["reason"].as_str(), "{golden}");
    }
}
