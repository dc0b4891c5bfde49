//! Measures what transcoding a frame costs.

fn main() {}
