//! Credit, as both ends count it: absolute numbers of bytes since the session began.

/// Of the window: what is told at once when it has become free.
const WANTED_PART: u64 = 8;

/// The site's side: `charged <= limit`.
#[derive(Debug, Default)]
pub(super) struct SendCredit {
    limit: u64,
    charged: u64,
}

impl SendCredit {
    /// The hub's limit only ever grows; a lower one came late and is ignored.
    pub(super) fn raise(&mut self, limit: u64) {
        self.limit = self.limit.max(limit);
    }

    pub(super) fn available(&self) -> u64 {
        self.limit.saturating_sub(self.charged)
    }

    /// Takes the charge of one stream, if there is credit for it.
    pub(super) fn take(&mut self, charge: u64) -> bool {
        let fits = charge <= self.available();
        if fits {
            self.charged += charge;
        }
        fits
    }
}

/// The hub's side: `released <= received <= limit`, and `limit = released + window` as the window
/// allows; a smaller window only stops the limit from growing.
#[derive(Debug)]
pub(super) struct ReceiveCredit {
    window: u64,
    limit: u64,
    announced: u64,
    received: u64,
    released: u64,
}

impl ReceiveCredit {
    pub(super) fn new(window: u64) -> Self {
        Self {
            window,
            limit: window,
            announced: 0,
            received: 0,
            released: 0,
        }
    }

    pub(super) fn set_window(&mut self, window: u64) {
        self.window = window;
        self.raise();
    }

    fn raise(&mut self) {
        self.limit = self.limit.max(self.released.saturating_add(self.window));
    }

    /// Counts a stream that came; false when the site went past the announced limit.
    pub(super) fn receive(&mut self, charge: u64) -> bool {
        self.received = self.received.saturating_add(charge);
        self.received <= self.announced
    }

    /// The bytes of a stream are no longer held.
    pub(super) fn release(&mut self, charge: u64) {
        self.released += charge;
        debug_assert!(self.released <= self.received, "released what never came");
        self.raise();
    }

    /// Bytes that came and are still held.
    pub(super) fn held(&self) -> u64 {
        self.received - self.released
    }

    /// True when the site does not know the limit yet.
    pub(super) fn is_news(&self) -> bool {
        self.limit > self.announced
    }

    /// So much is free that the site should know soon.
    pub(super) fn is_wanted(&self) -> bool {
        self.limit - self.announced >= (self.window / WANTED_PART).max(1)
    }

    /// The limit, about to be told.
    pub(super) fn announce(&mut self) -> u64 {
        self.announced = self.limit;
        self.limit
    }
}
