//! `evenkeel capture`.

use std::path::PathBuf;

use evenkeel_surface::canonical;

use crate::failure::Failure;
use crate::{Global, output};

/// What can this host show a guest?
#[derive(clap::Args)]
pub struct Capture {
    /// Where to write the capture; standard output otherwise.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Also run a guest in each shape, and settle what only behaviour shows.
    #[arg(long)]
    observe: bool,
}

impl Capture {
    /// Captures. A capture is JSON in either format.
    pub fn run(self, _: Global) -> Result<u8, Failure> {
        let mut surface = evenkeel_hosts::capture_here()?;
        if self.observe {
            let shapes: Vec<String> = surface.offer.shapes.iter().map(|s| s.name.clone()).collect();
            for shape in shapes {
                let observed = super::observe::here(&shape)?;
                let settled = evenkeel_witness::merge::merge(&observed, &mut surface);
                anstream::eprintln!("a guest in shape {shape} settled {settled} facets");
            }
        }
        let text = canonical::print(&surface);
        super::deliver(&text, self.output.as_ref())?;
        let offer = &surface.offer;
        anstream::eprintln!(
            "{} words of CPUID, {} feature MSRs, {} MSRs, {} registers, {} capabilities, {} shapes; {}",
            offer.cpuid.len() * 4,
            offer.feature_msrs.len(),
            offer.msrs.len(),
            offer.registers.len(),
            offer.capabilities.len(),
            offer.shapes.len(),
            surface.digests.offer
        );
        for u in &offer.unread {
            anstream::eprintln!("not read: {}: {} {}", u.what, u.call, u.why);
        }
        if let Some(path) = &self.output {
            anstream::eprintln!("written to {}", path.display());
        }
        output::print("")?;
        Ok(0)
    }
}
