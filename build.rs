//! Compiles `proto/` without protoc: message types, services, the descriptor set that reflection serves, and ProtoJSON.
//!
//! `Frame` and `google.protobuf.Value` are not generated: the crate brings its own types for them (`frame::Frame`,
//! `frame::Payload`), which every generated type uses.

#[path = "build/protojson.rs"]
mod protojson;

use std::error::Error;
use std::path::PathBuf;

use prost::Message;

const FILES: [&str; 4] = [
    "twinspan/v1/frame.proto",
    "twinspan/v1/gateway.proto",
    "twinspan/v1/sessions.proto",
    "twinspan/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=build");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptors = protox::compile(FILES, ["proto"])?;
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    std::fs::write(out.join("protojson.rs"), protojson::generate(&descriptors)?)?;

    // `Attach` is served on ready bytes (see `transport::grpc`), so its server is generated apart from the rest.
    let mut rest = descriptors;
    for file in &mut rest.file {
        file.service.retain(|service| service.name() != "Gateway");
    }
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".google.protobuf.Value", "crate::frame::Payload")
        .extern_path(".twinspan.v1.Frame", "crate::frame::Frame")
        .codec_path("crate::frame::CallCodec")
        .compile_fds(rest)?;
    let attach = tonic_build::manual::Method::builder()
        .name("attach")
        .route_name("Attach")
        .input_type("crate::transport::grpc::Inbound")
        .output_type("crate::transport::grpc::Outbound")
        .codec_path("crate::transport::grpc::FrameCodec")
        .client_streaming()
        .server_streaming()
        .build();
    let gateway = tonic_build::manual::Service::builder()
        .name("Gateway")
        .package("twinspan.v1")
        .method(attach)
        .build();
    tonic_build::manual::Builder::new()
        .build_client(false)
        .compile(&[gateway]);
    Ok(())
}
