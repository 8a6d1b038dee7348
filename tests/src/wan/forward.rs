//! The thread that carries packets between two devices through the model.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::device::{self, Bell};
use super::emulator::{Emulator, Way};

/// Packets from one side before the other has its turn.
const ROUND: usize = 64;
const LARGEST_PACKET: usize = 65_536;

/// What the thread and its owner share.
#[derive(Debug)]
pub(super) struct Shared {
    emulator: Mutex<Emulator>,
    began: Instant,
    bell: Bell,
    is_over: AtomicBool,
}

impl Shared {
    pub(super) fn new(emulator: Emulator) -> io::Result<Self> {
        Ok(Self {
            emulator: Mutex::new(emulator),
            began: Instant::now(),
            bell: Bell::new()?,
            is_over: AtomicBool::new(false),
        })
    }

    /// The model, at this time; the thread looks at it again afterwards.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Emulator, Duration) -> T) -> T {
        let mut emulator = self.lock();
        let now = self.began.elapsed();
        emulator.run_due(now);
        let outcome = act(&mut emulator, now);
        drop(emulator);
        self.bell.ring();
        outcome
    }

    pub(super) fn stop(&self) {
        self.is_over.store(true, Ordering::Release);
        self.bell.ring();
    }

    fn lock(&self) -> MutexGuard<'_, Emulator> {
        self.emulator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Until stopped, or until a device is gone.
pub(super) fn run(shared: &Shared, devices: &[File; 2]) -> io::Result<()> {
    device::be_punctual();
    let mut buffer = vec![0; LARGEST_PACKET];
    while !shared.is_over.load(Ordering::Acquire) {
        let next = {
            let mut emulator = shared.lock();
            for way in Way::BOTH {
                take(shared, &mut emulator, way, devices, &mut buffer)?;
            }
            let now = shared.began.elapsed();
            for way in Way::BOTH {
                while let Some(packet) = emulator.pop(now, way) {
                    // what the kernel does not want (an interface that is set down) is lost, as on a wire
                    let _unwanted = (&devices[1 - way.index()]).write_all(&packet);
                }
            }
            emulator.next_event()
        };
        let limit = next.map(|next| next.saturating_sub(shared.began.elapsed()));
        device::wait([&devices[0], &devices[1]], &shared.bell, limit);
    }
    Ok(())
}

fn take(
    shared: &Shared,
    emulator: &mut Emulator,
    way: Way,
    devices: &[File; 2],
    buffer: &mut [u8],
) -> io::Result<()> {
    for _ in 0..ROUND {
        match (&devices[way.index()]).read(buffer) {
            Ok(length) => {
                let packet = buffer.get(..length).unwrap_or_default().to_vec();
                emulator.push(shared.began.elapsed(), way, packet);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
