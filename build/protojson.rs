//! Generates ProtoJSON for the messages of `frame.proto`, all but `Frame`, which is written by hand, and for the answers of
//! calls that the commands show.
//!
//! Owns the choice of reader and writer for each kind of field; those themselves are in `src/frame/protojson.rs`. It must
//! never guess: a kind of field that it does not know ends the build.

use std::collections::HashSet;
use std::fmt::{self, Write};

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// Messages of other files that the commands show.
const SHOWN: [&str; 8] = [
    "ExportedSession",
    "WhyResponse",
    "WorkerCounts",
    "ListWorkersResponse",
    "Worker",
    "StatsResponse",
    "Revocation",
    "ListRevocationsResponse",
];

/// The text of `protojson.rs`, to be included where the generated types are.
pub fn generate(descriptors: &FileDescriptorSet) -> Result<String, fmt::Error> {
    let ours = descriptors.file.iter().filter(|file| file.package() == "twinspan.v1");
    let mut out = String::from("use crate::frame::protojson as json;\n");
    for file in ours {
        let all = file.name() == "twinspan/v1/frame.proto";
        let wanted = |name: &str| (all && name != "Frame") || SHOWN.contains(&name);
        for message in file.message_type.iter().filter(|message| wanted(message.name())) {
            write_message(&mut out, message)?;
        }
    }
    Ok(out)
}

fn write_message(out: &mut String, message: &DescriptorProto) -> fmt::Result {
    let maps: HashSet<&str> = message.nested_type.iter().map(DescriptorProto::name).collect();
    for nested in &message.nested_type {
        let is_map = nested.options.as_ref().is_some_and(|options| options.map_entry());
        assert!(is_map, "{}: nested messages are not supported", message.name());
    }
    let real_oneofs = message
        .field
        .iter()
        .any(|field| field.oneof_index.is_some() && !field.proto3_optional());
    assert!(!real_oneofs, "{}: oneofs are not supported", message.name());
    let fields: Vec<Field> = message.field.iter().map(|field| Field::new(field, &maps)).collect();
    writeln!(out, "impl json::ProtoJson for {} {{", message.name())?;
    write_read(out, &fields)?;
    write_check(out, &fields)?;
    write_write(out, &fields)?;
    writeln!(out, "}}")
}

fn write_read(out: &mut String, fields: &[Field]) -> fmt::Result {
    out.push_str("fn read_json(&mut self, reader: &mut json::Reader<'_>) -> Result<(), json::Fault> {\n");
    out.push_str("reader.open()?;\nlet mut first = true;\n#[allow(unused)] let mut seen = json::Seen::default();\n");
    out.push_str("while let Some(name) = reader.member(&mut first)? {\n");
    out.push_str("#[allow(unused_variables)] let (number, field): (u32, &'static str) = match &*name {\n");
    for (number, field) in fields.iter().enumerate() {
        let (json, proto) = (&field.json, &field.proto);
        let names = if json == proto {
            format!("{json:?}")
        } else {
            format!("{json:?} | {proto:?}")
        };
        writeln!(out, "{names} => ({number}, {json:?}),")?;
    }
    out.push_str("_ => { reader.unknown(&name)?; continue; }\n};\n");
    if !fields.is_empty() {
        out.push_str("reader.once(&mut seen, number, field)?;\n");
        out.push_str("let result = (|| { if reader.null()? { return Ok(()); }\nmatch number {\n");
        for (number, field) in fields.iter().enumerate() {
            let pattern = if number + 1 == fields.len() {
                "_".to_owned()
            } else {
                number.to_string()
            };
            writeln!(out, "{pattern} => {{ {} }}", field.read())?;
        }
        out.push_str("}\nOk(()) })();\nresult.map_err(|fault: json::Fault| fault.within(field))?;\n");
    }
    out.push_str("}\nOk(())\n}\n");
    Ok(())
}

fn write_check(out: &mut String, fields: &[Field]) -> fmt::Result {
    out.push_str("fn check(&self) -> Result<(), json::Fault> {\n");
    for field in fields {
        if let Some(check) = field.check() {
            writeln!(out, "{check}.map_err(|fault| fault.within({:?}))?;", field.json)?;
        }
    }
    out.push_str("Ok(())\n}\n");
    Ok(())
}

fn write_write(out: &mut String, fields: &[Field]) -> fmt::Result {
    out.push_str(
        "fn write_json(&self, out: &mut Vec<u8>) {\n#[allow(unused_mut)] let mut members = json::Members::open(out);\n",
    );
    for field in fields {
        writeln!(out, "{}", field.write())?;
    }
    out.push_str("members.close();\n}\n");
    Ok(())
}

/// A field, as far as its JSON depends on it.
struct Field {
    proto: String,
    json: String,
    kind: Kind,
    shape: Shape,
}

enum Kind {
    /// A scalar, by the name of its reader, which is that of its writer too.
    Scalar(&'static str),
    String,
    Enum(String),
    Timestamp,
    Duration,
    Message,
}

#[derive(PartialEq)]
enum Shape {
    One,
    Optional,
    List,
    Map,
}

impl Field {
    fn new(field: &FieldDescriptorProto, maps: &HashSet<&str>) -> Self {
        let type_name = field.type_name().rsplit('.').next().unwrap_or_default().to_owned();
        let kind = match field.r#type() {
            Type::Bool => Kind::Scalar("bool"),
            Type::Uint32 | Type::Fixed32 => Kind::Scalar("u32"),
            Type::Uint64 | Type::Fixed64 => Kind::Scalar("u64"),
            Type::Int32 | Type::Sint32 | Type::Sfixed32 => Kind::Scalar("i32"),
            Type::String => Kind::String,
            Type::Enum => Kind::Enum(type_name.clone()),
            Type::Message => match field.type_name() {
                ".google.protobuf.Timestamp" => Kind::Timestamp,
                ".google.protobuf.Duration" => Kind::Duration,
                name if name.starts_with(".twinspan.v1.") => Kind::Message,
                name => panic!("{}: {name} is not supported", field.name()),
            },
            other => panic!("{}: {other:?} is not supported", field.name()),
        };
        let shape = match field.label() {
            Label::Repeated if maps.contains(type_name.as_str()) => Shape::Map,
            Label::Repeated => Shape::List,
            _ if field.proto3_optional() => Shape::Optional,
            _ => Shape::One,
        };
        Self {
            proto: field.name().to_owned(),
            json: field.json_name().to_owned(),
            kind,
            shape,
        }
    }

    fn is_message(&self) -> bool {
        matches!(self.kind, Kind::Message | Kind::Timestamp | Kind::Duration)
    }

    /// The expression that reads one value.
    fn read_one(&self) -> String {
        match &self.kind {
            Kind::Scalar(name) => format!("reader.{name}()?"),
            Kind::String => "reader.string()?".to_owned(),
            Kind::Timestamp => "reader.timestamp()?".to_owned(),
            Kind::Duration => "reader.duration()?".to_owned(),
            Kind::Enum(name) => format!("reader.r#enum(|name| {name}::from_str_name(name).map(|value| value as i32))?"),
            Kind::Message => {
                "{ let mut item = Default::default(); json::ProtoJson::read_json(&mut item, reader)?; item }".to_owned()
            }
        }
    }

    /// The statement that reads the field.
    fn read(&self) -> String {
        let (name, one) = (&self.proto, self.read_one());
        let is_enum = matches!(self.kind, Kind::Enum(_));
        match self.shape {
            Shape::Map => format!("reader.map(&mut self.{name})?;"),
            Shape::List if is_enum => {
                format!("reader.list(&mut self.{name}, |reader| Ok({one}))?;")
            }
            Shape::List => format!("reader.list(&mut self.{name}, |reader| Ok(Some({one})))?;"),
            Shape::Optional if is_enum => format!("self.{name} = {one};"),
            Shape::One if is_enum => format!("self.{name} = {one}.unwrap_or_default();"),
            Shape::One if !self.is_message() => format!("self.{name} = {one};"),
            Shape::One | Shape::Optional => format!("self.{name} = Some({one});"),
        }
    }

    /// The expression that checks the field, where there is something to check.
    fn check(&self) -> Option<String> {
        let name = &self.proto;
        let check = match self.kind {
            Kind::Timestamp => "json::check_timestamp(Some(item))",
            Kind::Duration => "json::check_duration(Some(item))",
            Kind::Message => "json::ProtoJson::check(item)",
            _ => return None,
        };
        (self.shape != Shape::Map).then(|| format!("self.{name}.iter().try_for_each(|item| {check})"))
    }

    /// The expression that writes one value, which `item` refers to.
    fn write_one(&self) -> String {
        match &self.kind {
            Kind::Scalar(name) => format!("json::put_{name}(out, *item)"),
            Kind::String => "json::put_string(out, item)".to_owned(),
            Kind::Timestamp => "json::put_timestamp(out, item)".to_owned(),
            Kind::Duration => "json::put_duration(out, item)".to_owned(),
            Kind::Enum(name) => {
                format!("json::put_enum(out, *item, {name}::try_from(*item).ok().map(|value| value.as_str_name()))")
            }
            Kind::Message => "json::ProtoJson::write_json(item, out)".to_owned(),
        }
    }

    /// The statement that writes the field.
    fn write(&self) -> String {
        let (name, one) = (&self.proto, self.write_one());
        let member = format!("let out = members.name({:?});", format!(",\"{}\":", self.json));
        match self.shape {
            Shape::Map => format!("if !self.{name}.is_empty() {{ {member} json::put_map(out, &self.{name}); }}"),
            Shape::List => {
                format!(
                    "if !self.{name}.is_empty() {{ {member} json::put_list(out, &self.{name}, |out, item| {one}); }}"
                )
            }
            Shape::One if !self.is_message() => {
                format!("if json::is_set(&self.{name}) {{ {member} let item = &self.{name}; {one}; }}")
            }
            Shape::One | Shape::Optional => {
                format!("if let Some(item) = &self.{name} {{ {member} {one}; }}")
            }
        }
    }
}
