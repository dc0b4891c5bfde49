//! Being asked to stop: Ctrl-C, or SIGTERM. Once means "in good order", twice means "now".

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;

/// Both ways to be asked.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on the signals do not end the process by themselves.
    pub fn install() -> Result<Self, Failure> {
        let refused = |error: io::Error| Failure::new(Failure::REFUSED, format!("signals cannot be handled: {error}"));
        let interrupt = signal(SignalKind::interrupt()).map_err(refused)?;
        let terminate = signal(SignalKind::terminate()).map_err(refused)?;
        Ok(Self { interrupt, terminate })
    }

    /// Ends when the process is asked to stop.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// The same, and from then on being asked again ends the process at once.
    pub async fn asked_once(mut self) {
        self.asked().await;
        tokio::spawn(async move {
            self.asked().await;
            if !STOPPED.load(Ordering::Relaxed) {
                std::process::exit(Failure::INTERRUPTED.into());
            }
        });
    }
}

static STOPPED: AtomicBool = AtomicBool::new(false);

/// All is done in good order: who asks again now asks for what is happening already.
pub fn stopped() {
    STOPPED.store(true, Ordering::Relaxed);
}
