//! What it costs to guard a frame: its grants, its rate, and what a credential costs once a connection.
//!
//! `cargo bench --bench guards`, by hand. A figure is the thread's CPU time of one call, the median of many samples.

use std::hint::black_box;
use std::time::Duration;

use twinspan::auth::{Deed, Grant, Grants, Place};
use twinspan::limits::{Bucket, Rate};

mod common;

use common::measure;

fn grants(count: usize) -> Grants {
    let grant = |at: usize| Grant {
        sessions: vec![format!("room-{at}-*"), format!("user:{{sub}}:{at}:*")],
        can: vec![twinspan::auth::Permission::Send],
        ..Grant::default()
    };
    Grants::new((0..count).map(grant).collect(), "ann").expect("the grants must be right")
}

fn check(grants: &Grants, session: &str) {
    let place = Place { session, role: "" };
    black_box(grants.check(black_box(Deed::Send), black_box(place)).is_ok());
}

fn main() {
    println!("ns a call");
    println!(
        "{:8.1} grants, where nobody is authenticated",
        measure(|| check(&Grants::all(), "room-0-1"))
    );
    for count in [1, 8, 32] {
        let grants = grants(count);
        let session = format!("user:ann:{}:notes", count - 1);
        println!(
            "{:8.1} grants, the last of {count}, of two patterns each",
            measure(|| check(&grants, &session))
        );
    }
    let grants = grants(1);
    println!(
        "{:8.1} a refusal, with its text",
        measure(|| check(&grants, "elsewhere"))
    );
    let (mut bucket, rate) = (Bucket::default(), Rate::new(1_000_000_000, 2));
    let mut now = Duration::ZERO;
    let took = measure(|| {
        now += Duration::from_micros(1);
        black_box(bucket.take(1, rate, now).is_ok());
    });
    println!("{took:8.1} a rate");
}
