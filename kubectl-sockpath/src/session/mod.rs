//! Sessions with helpers: JSON lines over any byte stream, one stream per helper, merged into one [`Fleet`].
//!
//! A [`Transport`] is all that differs between a child process (the lab) and an attached pod (a cluster).

mod clock;
mod ending;
mod error;
mod event;
mod fleet;
mod kept;
mod last_lines;
mod life;
mod local;
mod ready;
mod resume;
mod stream;
mod suspension;
mod transport;

pub use clock::ClockEstimate;
pub use error::SessionError;
pub use event::Event;
pub use fleet::{Fleet, Member};
pub use kept::Kept;
pub use last_lines::LastLines;
pub use life::Patience;
pub use local::spawn;
pub use ready::{Mailbox, Ready};
pub use resume::{disconnected, reconnected};
pub use transport::{Aftermath, Ending, Keeper, Reopened, Transport};
