//! Holds what sites send to the limits: does what [`Limiter`] decides.
//!
//! A reader pays for what it has read before it reads on. While it waits, QUIC's flow control holds the
//! site back.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shared::ids::SiteId;
use tokio::sync::{Notify, oneshot};

use super::limits::{Limit, Limiter};

/// The limits of one process.
#[derive(Debug)]
pub(super) struct Ingress {
    total: Limit,
    state: Mutex<State>,
    /// What the driver sleeps for may have changed.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    limiter: Limiter<SiteId>,
    /// Readers that wait; two of one site while one session takes over from another.
    waiting: BTreeMap<SiteId, VecDeque<oneshot::Sender<u64>>>,
}

/// One session's part of it.
#[derive(Debug)]
pub(super) struct Allowance {
    ingress: Arc<Ingress>,
    site: SiteId,
    is_limited: AtomicBool,
    /// Granted and not used up. Readers of one session stand in line for it.
    left: tokio::sync::Mutex<u64>,
}

impl Ingress {
    pub(super) fn new(total: Limit) -> Self {
        Self {
            total,
            state: Mutex::new(State {
                limiter: Limiter::new(total, shared::time::now()),
                waiting: BTreeMap::new(),
            }),
            changed: Notify::new(),
        }
    }

    /// A session of this site begins, with a limit of its own.
    pub(super) fn join(self: &Arc<Self>, site: &SiteId, own: Limit) -> Allowance {
        let now = shared::time::now();
        self.lock().limiter.join(site.clone(), own, now);
        Allowance {
            ingress: Arc::clone(self),
            site: site.clone(),
            is_limited: AtomicBool::new(self.total.or(own).is_some()),
            left: tokio::sync::Mutex::new(0),
        }
    }

    /// Sites that are held by a limit at the moment.
    pub(super) fn waiting(&self) -> usize {
        self.lock().limiter.waiting()
    }

    /// Hands out turns as time passes.
    pub(super) async fn run(&self) -> Infallible {
        loop {
            let wake = {
                let mut state = self.lock();
                state.serve();
                state.limiter.poll_timeout()
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    /// A turn's bytes; `None` when the site has left.
    async fn turn(&self, site: &SiteId) -> Option<u64> {
        let (grant, granted) = oneshot::channel();
        {
            let mut state = self.lock();
            let waiting = state.waiting.entry(site.clone()).or_default();
            waiting.push_back(grant);
            state.limiter.want(site);
            state.serve();
        }
        self.changed.notify_one();
        granted.await.ok()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn serve(&mut self) {
        let now = shared::time::now();
        while let Some((site, bytes)) = self.limiter.poll_grant(now) {
            let Some(waiting) = self.waiting.get_mut(&site) else {
                self.limiter.give_back(&site, bytes);
                continue;
            };
            let is_taken =
                std::iter::from_fn(|| waiting.pop_front()).any(|reader| reader.send(bytes).is_ok());
            if waiting.is_empty() {
                self.waiting.remove(&site);
            } else {
                self.limiter.want(&site);
            }
            if !is_taken {
                self.limiter.give_back(&site, bytes);
            }
        }
    }
}

impl Allowance {
    /// Ends when so many bytes may have been read. Cancel-safe: what was granted meanwhile is kept.
    pub(super) async fn pay(&self, bytes: usize) {
        if !self.is_limited.load(Ordering::Relaxed) {
            return;
        }
        let mut owed = bytes as u64;
        let mut left = self.left.lock().await;
        loop {
            let paid = owed.min(*left);
            *left -= paid;
            owed -= paid;
            if owed == 0 {
                return;
            }
            match self.ingress.turn(&self.site).await {
                Some(granted) => *left += granted,
                None => return,
            }
        }
    }

    /// The site's own limit is another from here on.
    pub(super) fn set(&self, own: Limit) {
        let is_limited = self.ingress.total.or(own).is_some();
        self.is_limited.store(is_limited, Ordering::Relaxed);
        let mut state = self.ingress.lock();
        state.limiter.set(&self.site, own, shared::time::now());
        state.serve();
        drop(state);
        self.ingress.changed.notify_one();
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        let left = *self.left.get_mut();
        let mut state = self.ingress.lock();
        state.limiter.give_back(&self.site, left);
        state.limiter.leave(&self.site);
        if let Some(waiting) = state.waiting.get_mut(&self.site) {
            waiting.retain(|reader| !reader.is_closed());
            if waiting.is_empty() {
                state.waiting.remove(&self.site);
            }
        }
        drop(state);
        self.ingress.changed.notify_one();
    }
}

/// By [`shared::time::now`].
pub(super) async fn sleep_until(at: Option<Duration>) {
    match at {
        Some(at) => tokio::time::sleep(at.saturating_sub(shared::time::now())).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(name: &str) -> SiteId {
        SiteId::new(name).unwrap()
    }

    #[tokio::test]
    async fn without_a_limit_nobody_waits() {
        let ingress = Arc::new(Ingress::new(None));
        let allowance = ingress.join(&site("a"), None);
        allowance.pay(1 << 40).await;
        assert_eq!(ingress.waiting(), 0);
    }

    #[tokio::test]
    async fn readers_pay_at_the_rate_of_the_limit() {
        let ingress = Arc::new(Ingress::new(Some(1_000_000)));
        let (a, b) = (
            ingress.join(&site("a"), None),
            ingress.join(&site("b"), Some(10_000_000)),
        );
        let began = shared::time::now();
        tokio::select! {
            never = ingress.run() => match never {},
            _ = async { tokio::join!(a.pay(200_000), b.pay(200_000)) } => {}
        }
        // 400 kB less a burst of a tenth of a second
        let took = shared::time::now() - began;
        assert!(took >= Duration::from_millis(250), "{took:?}");
    }

    #[tokio::test]
    async fn a_limit_that_is_lifted_lets_the_reader_go_on() {
        let ingress = Arc::new(Ingress::new(None));
        let allowance = ingress.join(&site("a"), Some(1_000));
        let lifted = async {
            tokio::task::yield_now().await;
            allowance.set(None);
        };
        tokio::select! {
            never = ingress.run() => match never {},
            _ = async { tokio::join!(allowance.pay(100_000), lifted) } => {}
        }
        assert_eq!(ingress.waiting(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_goes_away_takes_nothing_along() {
        let ingress = Arc::new(Ingress::new(None));
        let allowance = ingress.join(&site("a"), Some(1_000));
        let late = tokio::time::timeout(Duration::ZERO, allowance.pay(1 << 20)).await;
        assert!(late.is_err());
        drop(allowance);
        assert_eq!(ingress.waiting(), 0);
        assert!(ingress.lock().waiting.is_empty());
    }
}
