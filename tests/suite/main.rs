//! The one binary of integration tests.

mod protojson;
