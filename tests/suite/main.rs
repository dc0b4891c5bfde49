//! The integration tests, one binary: scenarios that are written once and run over both faces, the calls, the edges that
//! strangers touch, TLS, proxies and origins, the store's failures, processes that are killed and stopped, a storm, and frames in
//! both forms.

#![allow(clippy::unwrap_used, reason = "in tests")]

mod account;
mod actors;
mod attacks;
mod calls;
mod check;
mod damage;
mod drain;
mod durability;
mod edges;
mod endings;
mod expelled;
mod faults;
mod folding;
mod full;
mod harness;
mod identities;
mod keys;
mod limits;
mod minting;
mod origins;
mod permissions;
mod process;
mod protojson;
mod proxies;
mod raw;
mod reopened;
mod requests;
mod secrets;
mod sessions;
mod store;
mod storm;
mod tls;
mod tokens;
mod transfer;
mod unloading;
mod upkeep;

/// Runs each scenario over all pairs of faces.
#[macro_export]
macro_rules! scenarios {
    ($($name:ident)*) => {
        mod on_all_faces {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    for (one, other) in $crate::harness::FACES {
                        eprintln!("{one:?} and {other:?}");
                        super::$name(one, other).await;
                    }
                }
            )*
        }
    };
}
