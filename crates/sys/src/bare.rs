//! The requests of a log, made again with nothing around them: the floor that benches compare with.

use std::ffi::c_void;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::live::ioctl;
use crate::requests::{KVM_SET_USER_MEMORY_REGION, by_name};
use crate::{Handle, Live, Log, Refusal, Request};

/// Requests with their arguments in place, on open descriptors.
#[derive(Debug)]
pub struct Bare {
    calls: Vec<Call>,
}

#[derive(Debug)]
struct Call {
    fd: Arc<OwnedFd>,
    request: &'static Request,
    /// An integer, or the structure (with room for all that the kernel may write) and what it points at.
    int: Option<u64>,
    head: Vec<u8>,
    payload: Vec<u8>,
}

impl Bare {
    /// The requests of this log, which was recorded over this backend. Runs of vCPUs and what makes descriptors are left out.
    ///
    /// # Errors
    /// The log is of another backend, or of requests that are not known.
    pub fn new(live: &Live, log: &Log) -> Result<Bare, Refusal> {
        let mut calls = Vec::with_capacity(log.entries.len());
        for entry in &log.entries {
            let unknown = || Refusal::Nonsense(format!("{entry} cannot be repeated"));
            let request = by_name(&entry.call).ok_or_else(unknown)?;
            let special = request.creates.is_some() || request.number == KVM_SET_USER_MEMORY_REGION.number;
            if special || request.name == "KVM_RUN" || request.name == "KVM_X86_SET_MSR_FILTER" {
                continue;
            }
            let fd = live.fd(Handle(entry.fd.ok_or_else(unknown)?))?;
            let mut head = entry.bytes_in.as_ref().map(|b| b.to_vec()).unwrap_or_default();
            let mut payload = entry.payload_in.as_ref().map(|b| b.to_vec()).unwrap_or_default();
            if entry.int.is_none() {
                // More than any list holds, as its count says, and more than the kernel sizes by itself.
                let tail = request.tail.map_or(0, |t| {
                    (crate::layout::word(&head, t.count_at) as usize)
                        .saturating_mul(t.each)
                        .saturating_add(t.base)
                });
                head.resize(head.len().max(request.size()).max(tail) + request.slack, 0);
            }
            payload.resize(payload.len() + request.slack, 0);
            if let Some((at, _)) = request.payload {
                let address = payload.as_mut_ptr() as u64;
                head.get_mut(at..at + 8).ok_or_else(unknown)?.copy_from_slice(&address.to_ne_bytes());
            }
            calls.push(Call { fd, request, int: entry.int, head, payload });
        }
        Ok(Bare { calls })
    }

    /// How many requests there are.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Makes all of them. What they return is not looked at. Returns how many failed.
    pub fn run(&mut self) -> usize {
        let mut failed = 0;
        for call in &mut self.calls {
            debug_assert!(call.payload.len() >= call.request.payload.map_or(0, |_| call.request.slack));
            let argument: *mut c_void = match call.int {
                Some(value) => value as usize as *mut c_void,
                None => call.head.as_mut_ptr().cast(),
            };
            failed += usize::from(ioctl(&call.fd, call.request, argument).is_err());
        }
        failed
    }
}
