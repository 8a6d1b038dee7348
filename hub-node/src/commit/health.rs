//! Whether every lane can commit.

use std::sync::Arc;

use tokio::sync::watch;

/// All lanes' health: ready while no lane is in trouble.
#[derive(Debug, Clone)]
pub(crate) struct Health(Arc<watch::Sender<usize>>);

impl Health {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(0)))
    }

    /// How many lanes are in trouble.
    pub(crate) fn subscribe(&self) -> watch::Receiver<usize> {
        self.0.subscribe()
    }

    pub(crate) fn lane(&self) -> LaneHealth {
        LaneHealth {
            troubled: self.0.clone(),
            is_well: true,
        }
    }
}

/// One lane's word on it.
#[derive(Debug)]
pub(crate) struct LaneHealth {
    troubled: Arc<watch::Sender<usize>>,
    is_well: bool,
}

impl LaneHealth {
    /// True when that is news.
    pub(crate) fn set(&mut self, is_well: bool) -> bool {
        let is_news = self.is_well != is_well;
        if is_news {
            self.is_well = is_well;
            self.troubled
                .send_modify(|count| *count = if is_well { *count - 1 } else { *count + 1 });
        }
        is_news
    }
}
