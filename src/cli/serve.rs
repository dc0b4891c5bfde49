//! `twinspan serve`: the gateway, until it is asked to stop.

use super::Failure;
use super::signals::{self, Signals};
use crate::config::Config;
use crate::server::Server;
use crate::telemetry;

pub async fn run(config: Config) -> Result<(), Failure> {
    telemetry::init(&config)?;
    let signals = Signals::install()?;
    match (config.auth.is_required(), config.listen.ip().is_loopback()) {
        (true, _) => {}
        (false, true) => {
            tracing::info!("peers are not authenticated (no `auth` settings): only this machine can reach the gateway")
        }
        (false, false) => {
            tracing::warn!(listen = %config.listen, "other machines can reach the gateway, which does not authenticate them");
        }
    }
    let server = Server::bind(config).await?;
    server.run(signals.asked_once()).await?;
    signals::stopped();
    Ok(())
}
