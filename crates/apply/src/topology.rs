//! What of CPUID follows from how many vCPUs there are and which one asks.

use evenkeel_sys::layout::CpuidEntry;

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Where a guest finds out what its hypervisor is, if bit 31 of leaf 1's ECX tells it that there is one.
const HYPERVISOR_LEAF: u32 = 0x4000_0000;

/// How the vCPUs of a guest lie. One package; APIC ids are vCPU indices where threads fill their bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// How many vCPUs there are, or will be.
    pub vcpus: u32,
    /// How many of them share a core.
    pub threads: u32,
}

impl Default for Topology {
    fn default() -> Self {
        Topology { vcpus: 1, threads: 1 }
    }
}

/// How many bits number this many things.
fn bits(count: u32) -> u32 {
    count.max(1).next_power_of_two().trailing_zeros()
}

impl Topology {
    /// The APIC id of a vCPU: the number of the core, then that of the thread.
    pub fn apic_id(self, index: u32) -> u32 {
        let threads = self.threads.max(1);
        ((index / threads) << bits(threads)) | (index % threads)
    }

    fn cores(self) -> u32 {
        self.vcpus.max(1).div_ceil(self.threads.max(1))
    }

    /// Bits of an APIC id that number threads, and all of its bits.
    fn shifts(self) -> (u32, u32) {
        let thread = bits(self.threads);
        (thread, thread + bits(self.cores()))
    }

    /// Fills in what the table says about this vCPU and its neighbours, and that there is a hypervisor where it names one: the APIC ids in leaves 1, 0xb, 0x1f,
    /// 0x8000001e and 0x80000026, and who shares what. Leaf 0xb is made where the table goes that far, because what of
    /// it a capture holds is the capturing machine's own.
    pub fn fill(self, table: &mut Vec<CpuidEntry>, index: u32) {
        let id = self.apic_id(index);
        let (thread_shift, package_shift) = self.shifts();
        let (vcpus, threads) = (self.vcpus.max(1), self.threads.max(1));
        let put = |value: &mut u32, lo: u32, width: u32, new: u32| {
            let mask = (((1u64 << width) - 1) << lo) as u32;
            *value = *value & !mask | (new << lo) & mask;
        };
        let mut last = 0;
        let mut topoext = false;
        let hypervisor = table.iter().any(|e| e.function == HYPERVISOR_LEAF);
        for e in table.iter_mut() {
            let out = &mut e.output;
            match e.function {
                0 => last = out[EAX],
                1 => {
                    put(&mut out[EBX], 24, 8, id & 0xff);
                    put(&mut out[EBX], 16, 8, vcpus.min(255));
                    // Said of one vCPU too, it does no harm: then it is as the contract has it.
                    out[EDX] |= u32::from(vcpus > 1) << 28;
                    // Kernels before 6.16 take the bit and do not offer it; without it no guest looks for the leaf.
                    out[ECX] |= u32::from(hypervisor) << 31;
                }
                // A cache of the third level is the package's, the others are the core's.
                4 if out[EAX] & 0x1f != 0 => {
                    let sharing = if out[EAX] >> 5 & 7 >= 3 { vcpus } else { threads };
                    put(&mut out[EAX], 14, 12, (1 << bits(sharing)) - 1);
                    put(&mut out[EAX], 26, 6, ((1u32 << bits(self.cores())) - 1).min(63));
                }
                0x8000_0001 => topoext = out[ECX] & 1 << 22 != 0,
                0x8000_0008 => {
                    put(&mut out[ECX], 0, 8, (vcpus - 1).min(255));
                    put(&mut out[ECX], 12, 4, package_shift);
                }
                0x8000_001d if out[EAX] & 0x1f != 0 => {
                    let sharing = if out[EAX] >> 5 & 7 >= 3 { vcpus } else { threads };
                    put(&mut out[EAX], 14, 12, sharing - 1);
                }
                0x8000_0026 => out[EDX] = id,
                _ => {}
            }
        }
        let levels = [(1, thread_shift, threads), (2, package_shift, vcpus), (0, 0, 0)];
        for leaf in [0xb, 0x1f] {
            let named = table.iter().any(|e| e.function == leaf);
            table.retain(|e| e.function != leaf);
            if named || (leaf == 0xb && last >= leaf) {
                table.extend(levels.iter().enumerate().map(|(subleaf, (kind, shift, count))| CpuidEntry {
                    function: leaf,
                    index: subleaf as u32,
                    flags: 1,
                    output: [*shift, *count, (*kind << 8) | subleaf as u32, id],
                }));
            }
        }
        if topoext {
            table.retain(|e| e.function != 0x8000_001e);
            let output = [id, ((threads - 1) << 8) | ((index / threads) & 0xff), 0, 0];
            table.push(CpuidEntry { function: 0x8000_001e, output, ..CpuidEntry::default() });
        }
        table.sort_by_key(|e| (e.function, e.index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, output: [u32; 4]) -> CpuidEntry {
        CpuidEntry { function, output, ..CpuidEntry::default() }
    }

    fn table() -> Vec<CpuidEntry> {
        vec![
            entry(0, [0x1f, 0, 0, 0]),
            entry(1, [1, 0x0000_0800, 2, 0]),
            entry(4, [0x121, 0, 0, 0]),
            CpuidEntry { index: 3, flags: 1, ..entry(4, [0x163, 0, 0, 0]) },
            entry(0x1f, [9, 9, 9, 9]),
            entry(0x8000_0001, [0, 0, 1 << 22, 0]),
            entry(0x8000_0008, [0x3028, 0, 0, 0]),
        ]
    }

    fn get(table: &[CpuidEntry], function: u32, index: u32) -> [u32; 4] {
        table.iter().find(|e| (e.function, e.index) == (function, index)).unwrap().output
    }

    #[test]
    fn every_vcpu_finds_its_own_ids() {
        let topology = Topology { vcpus: 6, threads: 2 };
        let mut ids = Vec::new();
        for index in 0..6 {
            let mut t = table();
            topology.fill(&mut t, index);
            let id = get(&t, 0xb, 0)[3];
            assert_eq!(get(&t, 1, 0)[1], id << 24 | 6 << 16 | 0x800);
            assert_eq!(get(&t, 1, 0)[3] >> 28 & 1, 1);
            assert_eq!([get(&t, 0xb, 1)[3], get(&t, 0x1f, 0)[3], get(&t, 0x8000_001e, 0)[0]], [id; 3]);
            assert_eq!(get(&t, 0x8000_001e, 0)[1], (1 << 8) | (index / 2));
            // Three cores number two bits, two threads one.
            assert_eq!((get(&t, 0xb, 0)[0], get(&t, 0xb, 1)[0]), (1, 3));
            assert_eq!(get(&t, 0x8000_0008, 0)[2], 3 << 12 | 5);
            // A core's cache is shared by two, the package's by eight places.
            assert_eq!((get(&t, 4, 0)[0] >> 14 & 0xfff, get(&t, 4, 3)[0] >> 14 & 0xfff), (1, 7));
            ids.push(id);
        }
        assert_eq!(ids, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn threads_fill_their_bits_and_ids_stay_apart() {
        let topology = Topology { vcpus: 9, threads: 3 };
        let ids: Vec<u32> = (0..9).map(|i| topology.apic_id(i)).collect();
        assert_eq!(ids, [0, 1, 2, 4, 5, 6, 8, 9, 10]);
        // An id that does not fit into leaf 1 is cut there and whole in leaf 0xb.
        let mut t = table();
        Topology { vcpus: 300, threads: 1 }.fill(&mut t, 299);
        assert_eq!((get(&t, 1, 0)[1] >> 24, get(&t, 0xb, 0)[3]), (299 & 0xff, 299));
    }

    #[test]
    fn a_table_that_does_not_go_that_far_gets_no_leaf_0xb() {
        let mut t = vec![entry(0, [4, 0, 0, 0]), entry(1, [0; 4])];
        Topology::default().fill(&mut t, 0);
        assert_eq!(t.len(), 2);
        assert_eq!(get(&t, 1, 0)[1], 1 << 16);
    }
}
