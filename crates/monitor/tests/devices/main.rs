//! Virtio devices through their registers and rings, as a driver uses them; and the same across a save.

mod block;
mod console;
mod driver;
mod entropy;
mod net;
mod tap;
mod transport;
