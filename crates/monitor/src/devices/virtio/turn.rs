//! A device's turn at a queue: so much work, and then others have theirs: the guest's next exit, and a pause.

use virtio_queue::{Queue, QueueOwnedT, QueueT};

use super::chain::{Chain, Popped, pop};
use crate::View;

/// What is next in a queue.
#[derive(Debug)]
pub enum Next {
    /// A request.
    Chain(Chain),
    /// What the driver made was none: it is used, with no bytes written.
    Skipped,
    /// Nothing: the driver notifies when there is.
    Empty,
    /// It is the others' turn: nobody notifies of what is left.
    Over,
}

/// How much was done, and how much may be.
#[derive(Debug)]
pub struct Turn {
    most: usize,
    each: usize,
    work: usize,
    used: bool,
}

impl Turn {
    /// A turn of `most` bytes, where a request counts as `each` beside its own.
    pub fn new(most: usize, each: usize) -> Turn {
        Turn { most, each, work: 0, used: false }
    }

    /// Whether something was put into the used ring.
    pub fn used(&self) -> bool {
        self.used
    }

    /// The next request.
    pub fn next(&mut self, queue: &mut Queue, memory: &View) -> Next {
        if self.work >= self.most {
            return Next::Over;
        }
        match pop(queue, memory) {
            Some(Popped::Chain(chain)) => Next::Chain(chain),
            Some(Popped::Malformed(head)) => {
                self.done(queue, memory, head, 0, 0);
                Next::Skipped
            }
            None => Next::Empty,
        }
    }

    /// The request is done: so many bytes were written into the guest's memory, and it counts as `cost`.
    pub fn done(&mut self, queue: &mut Queue, memory: &View, head: u16, written: u32, cost: usize) {
        self.spend(cost);
        self.used |= queue.add_used(memory, head, written).is_ok();
    }

    /// Work for which nothing is used.
    pub fn spend(&mut self, cost: usize) {
        self.work += self.each + cost;
    }

    /// Answers requests as long as it is this device's turn. `request` tells how many bytes it wrote and what it counts as, or
    /// nothing: then it waits, and is the first one next time. Returns whether work is left over that nobody notifies of.
    pub fn serve(
        &mut self,
        queue: &mut Queue,
        memory: &View,
        mut request: impl FnMut(Chain) -> Option<(u32, usize)>,
    ) -> bool {
        // A ring holds at most this many: a driver that adds while we work notifies again.
        for _ in 0..queue.size() {
            let chain = match self.next(queue, memory) {
                Next::Chain(chain) => chain,
                Next::Skipped => continue,
                Next::Empty => break,
                Next::Over => return true,
            };
            let head = chain.head;
            match request(chain) {
                Some((written, cost)) => self.done(queue, memory, head, written, cost),
                None => {
                    queue.go_to_previous_position();
                    break;
                }
            }
        }
        false
    }
}
