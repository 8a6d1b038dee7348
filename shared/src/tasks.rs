//! Tasks with a name, a kind and an end.
//!
//! A **core** task is a part of the node: when it ends before the node stops, by itself, with an error
//! or in a panic, the node goes down in order and its service manager starts it again. A **connection**
//! task serves one peer: when it fails, that is logged and counted and touches nobody else.
//!
//! Stopping is told through a [`CancellationToken`]; [`Tasks::finish`] waits for everything up to a
//! limit. Correctness never depends on a task being allowed to finish.

use std::fmt::Display;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// A handle to all tasks of a node; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    tracker: TaskTracker,
    stopping: CancellationToken,
    /// The first core task that ended early, and how.
    failure: OnceLock<String>,
    counts: TaskCounts,
}

/// Counters of connection tasks, for metrics.
#[derive(Debug, Default)]
pub struct TaskCounts {
    /// Connections under way.
    pub open: AtomicU64,
    /// Connections that ended with an error.
    pub failed: AtomicU64,
    /// Connections whose task panicked: a bug.
    pub panicked: AtomicU64,
}

impl Tasks {
    /// No tasks yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Told when the node stops. Child tokens end with it.
    #[must_use]
    pub fn stopping(&self) -> CancellationToken {
        self.inner.stopping.clone()
    }

    /// Counters.
    #[must_use]
    pub fn counts(&self) -> &TaskCounts {
        &self.inner.counts
    }

    /// Spawns a part of the node: if it ends before the node stops, the node stops.
    pub fn core<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let tasks = self.clone();
        let span = tracing::info_span!("task", name);
        let watched = async move {
            let outcome = match catch(future).await {
                Ok(Ok(())) if tasks.inner.stopping.is_cancelled() => return,
                Ok(Ok(())) => "ended by itself".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(panic) => format!("panicked: {panic}"),
            };
            tracing::error!(name, outcome, "Core task ended, the node stops");
            // Only the first is the cause; later ones are its consequences.
            tasks
                .inner
                .failure
                .get_or_init(|| format!("{name}: {outcome}"));
            tasks.stop();
        };
        self.inner.tracker.spawn(watched.instrument(span));
    }

    /// Spawns the task of one peer: its failure is logged and counted.
    pub fn connection<F, E>(&self, kind: &'static str, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Display + Send,
    {
        let tasks = self.clone();
        let watched = async move {
            let counts = &tasks.inner.counts;
            counts.open.fetch_add(1, Ordering::Relaxed);
            match catch(future).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    counts.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(kind, %error, "Connection ended with an error");
                }
                Err(panic) => {
                    counts.panicked.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(kind, panic, "Connection task panicked");
                }
            }
            counts.open.fetch_sub(1, Ordering::Relaxed);
        };
        self.inner.tracker.spawn(watched.in_current_span());
    }

    /// Begins to stop the node.
    pub fn stop(&self) {
        self.inner.stopping.cancel();
    }

    /// Stops when the process is told to: SIGTERM or SIGINT. A core task of every node.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn stop_on_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        let tasks = self.clone();
        self.core("signals", async move {
            let stopping = tasks.stopping();
            tokio::select! {
                _ = terminate.recv() => tracing::info!(signal = "SIGTERM", "Stopping"),
                _ = interrupt.recv() => tracing::info!(signal = "SIGINT", "Stopping"),
                () = stopping.cancelled() => {}
            }
            tasks.stop();
            Ok(())
        });
        Ok(())
    }

    /// Waits until the node stops, then at most `limit` for its tasks.
    ///
    /// # Errors
    /// The core task that took the node down, and how it ended.
    pub async fn finish(&self, limit: Duration) -> anyhow::Result<()> {
        self.inner.stopping.cancelled().await;
        self.inner.tracker.close();
        if tokio::time::timeout(limit, self.inner.tracker.wait())
            .await
            .is_err()
        {
            tracing::warn!(left = self.inner.tracker.len(), "Tasks did not end in time");
        }
        match self.inner.failure.get() {
            Some(failure) => Err(anyhow::anyhow!("core task {failure}")),
            None => Ok(()),
        }
    }
}

/// Runs a future to its end or its panic.
async fn catch<F: Future>(future: F) -> Result<F::Output, String> {
    let mut future = pin!(future);
    std::future::poll_fn(move |context| {
        // The future is not polled again after a panic, and what it shared is locked or atomic.
        match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(payload) => Poll::Ready(Err(panic_text(payload.as_ref()))),
        }
    })
    .await
}

fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "?".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_core_task_that_fails_takes_the_node_down() {
        let tasks = Tasks::new();
        let token = tasks.stopping();
        tasks.core("other", async move {
            token.cancelled().await;
            Ok(())
        });
        tasks.core("store", async {
            Err(anyhow::anyhow!("disk on fire").context("append"))
        });
        let error = tasks.finish(LIMIT).await.unwrap_err().to_string();
        assert_eq!(error, "core task store: append: disk on fire");
    }

    #[tokio::test]
    async fn a_core_task_that_panics_or_returns_takes_the_node_down() {
        let tasks = Tasks::new();
        tasks.core("panics", async { panic!("a bug") });
        let error = tasks.finish(LIMIT).await.unwrap_err().to_string();
        assert_eq!(error, "core task panics: panicked: a bug");
        let tasks = Tasks::new();
        tasks.core("returns", async { Ok(()) });
        let error = tasks.finish(LIMIT).await.unwrap_err().to_string();
        assert_eq!(error, "core task returns: ended by itself");
    }

    #[tokio::test]
    async fn a_connection_that_fails_is_counted_and_nothing_else() {
        let tasks = Tasks::new();
        tasks.connection("kafka", async { Err("garbage") });
        tasks.connection("kafka", async {
            if true {
                panic!("a bug")
            } else {
                Ok::<(), &str>(())
            }
        });
        tasks.connection("kafka", async { Ok::<(), &str>(()) });
        while !tasks.inner.tracker.is_empty() {
            tokio::task::yield_now().await;
        }
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counts = tasks.counts();
        assert_eq!(
            (
                count(&counts.failed),
                count(&counts.panicked),
                count(&counts.open)
            ),
            (1, 1, 0)
        );
        assert!(!tasks.stopping().is_cancelled());
        tasks.stop();
        tasks.finish(LIMIT).await.unwrap();
    }

    #[tokio::test]
    async fn a_task_that_does_not_end_is_waited_for_only_so_long() {
        let tasks = Tasks::new();
        tasks.connection("stuck", std::future::pending::<Result<(), &str>>());
        tasks.stop();
        tasks.finish(Duration::from_millis(20)).await.unwrap();
    }
}
