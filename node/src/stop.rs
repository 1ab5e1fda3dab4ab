//! The word to stop, which every task listens for.

use tokio::sync::watch;

/// Gives the word.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

/// Hears it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

/// A word not yet given, and its listener.
#[must_use]
pub fn channel() -> (Stopper, Stop) {
    let (send, receive) = watch::channel(false);
    (Stopper(send), Stop(receive))
}

impl Stopper {
    /// Gives the word.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Stop {
    /// Ends when the word is given, or can no longer be.
    pub async fn stopped(&self) {
        let _ = self.0.clone().wait_for(|stop| *stop).await;
    }
}
