//! Backups on a schedule: into a directory, of which the newest are kept.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crate::log::backup::Shelf;
use crate::router::Router;

/// When and where.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub shelf: Shelf,
    pub interval: Duration,
}

/// How soon a backup that failed is tried again, unless the next one is due before.
const RETRY: Duration = Duration::from_secs(300);

impl Schedule {
    /// Backs up as often as it is time, for as long as this is waited for.
    pub async fn follow(&self, router: &Router) {
        let mut wait = self.first_wait(router.now().wall);
        loop {
            tokio::time::sleep(wait).await;
            wait = match self.back_up(router).await {
                Ok(path) => {
                    tracing::info!(path = %path.display(), "backed up");
                    router.backed_up(Ok(()));
                    self.interval
                }
                Err(error) => {
                    tracing::error!(%error, dir = %self.shelf.dir.display(), "a scheduled backup failed");
                    router.backed_up(Err(()));
                    RETRY.min(self.interval)
                }
            };
        }
    }

    /// The time that is left until the newest backup there is has become too old; none, if there is none.
    fn first_wait(&self, now: SystemTime) -> Duration {
        let newest = self.shelf.newest().ok().flatten();
        let age = newest.map(|newest| now.duration_since(newest).unwrap_or_default());
        age.map_or(Duration::ZERO, |age| self.interval.saturating_sub(age))
    }

    /// Does something in a thread that may wait.
    async fn on_disk<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Shelf) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let shelf = self.shelf.clone();
        let done = tokio::task::spawn_blocking(move || act(&shelf)).await;
        done.map_err(io::Error::other)?
    }

    async fn back_up(&self, router: &Router) -> io::Result<PathBuf> {
        let time = prost_types::Timestamp::from(router.now().wall).to_string();
        // To the second, and without what file systems do not like in names.
        let time: String = time.chars().take_while(|part| *part != '.' && *part != 'Z').collect();
        let time = time.replace([':', '-'], "") + "Z";
        let (file, part) = self.on_disk(move |shelf| shelf.begin(&time)).await?;
        let written = router.backup(Box::new(file)).await;
        match written {
            Ok(_) => self.on_disk(move |shelf| shelf.done(&part)).await,
            Err(refusal) => {
                drop(fs::remove_file(&part));
                Err(io::Error::other(refusal.to_string()))
            }
        }
    }
}
