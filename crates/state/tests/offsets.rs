//! The catalog's names and offsets are those of the kernel's structures: held against the bindings, field by field. What is of
//! arm64 is held against the numbers of its headers, as an x86 build has no bindings of it.
#![allow(clippy::print_stdout, reason = "how much was held against the bindings is part of the result")]

use evenkeel_catalog::{StateField, section};

/// The field of a section, where it is there once, or the first of several.
fn field(of: &str, name: &str) -> &'static StateField {
    let section = section(of).unwrap_or_else(|| panic!("no section {of}"));
    section.fields.iter().find(|f| f.name == name).unwrap_or_else(|| panic!("{of} has no {name}"))
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use kvm_bindings::*;
    use std::mem::{offset_of, size_of};

    /// Bytes of what a pointer to a field points at.
    fn size_at<T, F>(_: fn(&T) -> &F) -> usize {
        size_of::<F>()
    }

    /// Holds fields against a structure: offset and size of each, `prefix` put before its name, `base` added to its offset.
    macro_rules! held {
        ($section:literal, $base:expr, $ty:ty, $prefix:literal, [$($($part:ident).+ = $name:literal),* $(,)?]) => {{
            let mut count = 0;
            $({
                let name = concat!($prefix, $name);
                let found = field($section, name);
                let size = size_at(|s: &$ty| &s.$($part).+);
                let offset = $base + offset_of!($ty, $($part).+);
                let all = (found.size * found.count.max(1)) as usize;
                assert_eq!((found.at as usize, all), (offset, size), "{}/{name}", $section);
                count += 1;
            })*
            count
        }};
    }

    /// As `held`, for several structures of one type that follow each other.
    macro_rules! segments {
        ($section:literal, $ty:ty, [$($segment:ident),*]) => {
            [$({
                let base = offset_of!($ty, $segment);
                {
                    let parts = [
                        ("base", offset_of!(kvm_segment, base), 8u32),
                        ("limit", offset_of!(kvm_segment, limit), 4),
                        ("selector", offset_of!(kvm_segment, selector), 2),
                        ("type", offset_of!(kvm_segment, type_), 1),
                        ("present", offset_of!(kvm_segment, present), 1),
                        ("dpl", offset_of!(kvm_segment, dpl), 1),
                        ("db", offset_of!(kvm_segment, db), 1),
                        ("s", offset_of!(kvm_segment, s), 1),
                        ("l", offset_of!(kvm_segment, l), 1),
                        ("g", offset_of!(kvm_segment, g), 1),
                        ("avl", offset_of!(kvm_segment, avl), 1),
                        ("unusable", offset_of!(kvm_segment, unusable), 1),
                        ("padding", offset_of!(kvm_segment, padding), 1),
                    ];
                    for (part, at, size) in parts {
                        let name = format!("{}.{part}", stringify!($segment));
                        let found = field($section, &name);
                        assert_eq!((found.at as usize, found.size), (base + at, size), "{name}");
                    }
                    parts.len()
                }
            }),*].iter().sum::<usize>()
        };
    }

    macro_rules! special {
        ($section:literal, $ty:ty) => {
            segments!($section, $ty, [cs, ds, es, fs, gs, ss, tr, ldt])
                + held!(
                    $section,
                    0,
                    $ty,
                    "",
                    [
                        gdt.base = "gdt.base",
                        gdt.limit = "gdt.limit",
                        gdt.padding = "gdt.padding",
                        idt.base = "idt.base",
                        idt.limit = "idt.limit",
                        idt.padding = "idt.padding",
                        cr0 = "cr0",
                        cr2 = "cr2",
                        cr3 = "cr3",
                        cr4 = "cr4",
                        cr8 = "cr8",
                        efer = "efer",
                        apic_base = "apic_base",
                    ]
                )
        };
    }

    #[test]
    fn structures_are_those_of_the_bindings() {
        let mut count = held!(
            "regs",
            0,
            kvm_regs,
            "",
            [
                rax = "rax",
                rbx = "rbx",
                rcx = "rcx",
                rdx = "rdx",
                rsi = "rsi",
                rdi = "rdi",
                rsp = "rsp",
                rbp = "rbp",
                r8 = "r8",
                r9 = "r9",
                r10 = "r10",
                r11 = "r11",
                r12 = "r12",
                r13 = "r13",
                r14 = "r14",
                r15 = "r15",
                rip = "rip",
                rflags = "rflags",
            ]
        );
        count += special!("sregs", kvm_sregs);
        count += held!("sregs", 0, kvm_sregs, "", [interrupt_bitmap = "interrupt_bitmap"]);
        count += special!("sregs2", kvm_sregs2);
        count += held!("sregs2", 0, kvm_sregs2, "", [flags = "flags", pdptrs = "pdptrs"]);
        count += held!(
            "fpu",
            0,
            kvm_fpu,
            "",
            [
                fpr = "fpr",
                fcw = "fcw",
                fsw = "fsw",
                ftwx = "ftwx",
                pad1 = "pad1",
                last_opcode = "last_opcode",
                last_ip = "last_ip",
                last_dp = "last_dp",
                xmm = "xmm",
                mxcsr = "mxcsr",
                pad2 = "pad2",
            ]
        );
        count += held!(
            "debugregs",
            0,
            kvm_debugregs,
            "",
            [db = "db", dr6 = "dr6", dr7 = "dr7", flags = "flags", reserved = "reserved",]
        );
        count += held!(
            "vcpu-events",
            0,
            kvm_vcpu_events,
            "",
            [
                exception.injected = "exception.injected",
                exception.nr = "exception.nr",
                exception.has_error_code = "exception.has_error_code",
                exception.pending = "exception.pending",
                exception.error_code = "exception.error_code",
                interrupt.injected = "interrupt.injected",
                interrupt.nr = "interrupt.nr",
                interrupt.soft = "interrupt.soft",
                interrupt.shadow = "interrupt.shadow",
                nmi.injected = "nmi.injected",
                nmi.pending = "nmi.pending",
                nmi.masked = "nmi.masked",
                sipi_vector = "sipi_vector",
                flags = "flags",
                smi.smm = "smi.smm",
                smi.pending = "smi.pending",
                smi.smm_inside_nmi = "smi.smm_inside_nmi",
                smi.latched_init = "smi.latched_init",
                triple_fault.pending = "triple_fault.pending",
                reserved = "reserved",
                exception_has_payload = "exception_has_payload",
                exception_payload = "exception_payload",
            ]
        );
        count += held!("mp-state", 0, kvm_mp_state, "", [mp_state = "mp_state"]);
        count += held!(
            "clock",
            0,
            kvm_clock_data,
            "",
            [
                clock = "clock",
                flags = "flags",
                pad0 = "pad0",
                realtime = "realtime",
                host_tsc = "host_tsc",
                pad = "pad",
            ]
        );
        count += held!("pit2", 0, kvm_pit_state2, "", [flags = "flags", reserved = "reserved"]);
        let channel = size_of::<kvm_pit_channel_state>();
        count += held!(
            "pit2",
            2 * channel,
            kvm_pit_channel_state,
            "channels.2.",
            [
                count = "count",
                latched_count = "latched_count",
                count_latched = "count_latched",
                status_latched = "status_latched",
                status = "status",
                read_state = "read_state",
                write_state = "write_state",
                write_latch = "write_latch",
                rw_mode = "rw_mode",
                mode = "mode",
                bcd = "bcd",
                gate = "gate",
                count_load_time = "count_load_time",
            ]
        );
        count += held!("irqchip", 0, kvm_irqchip, "pic.master.", [chip_id = "chip_id", pad = "pad"]);
        let chip = offset_of!(kvm_irqchip, chip);
        count += held!(
            "irqchip",
            size_of::<kvm_irqchip>() + chip,
            kvm_pic_state,
            "pic.slave.",
            [
                last_irr = "last_irr",
                irr = "irr",
                imr = "imr",
                isr = "isr",
                priority_add = "priority_add",
                irq_base = "irq_base",
                read_reg_select = "read_reg_select",
                poll = "poll",
                special_mask = "special_mask",
                init_state = "init_state",
                auto_eoi = "auto_eoi",
                rotate_on_auto_eoi = "rotate_on_auto_eoi",
                special_fully_nested_mode = "special_fully_nested_mode",
                init4 = "init4",
                elcr = "elcr",
                elcr_mask = "elcr_mask",
            ]
        );
        count += held!(
            "irqchip",
            2 * size_of::<kvm_irqchip>() + chip,
            kvm_ioapic_state,
            "ioapic.",
            [
                base_address = "base_address",
                ioregsel = "ioregsel",
                id = "id",
                irr = "irr",
                pad = "padding",
                redirtbl = "redirtbl",
            ]
        );
        count += held!(
            "nested-state",
            0,
            kvm_nested_state,
            "",
            [flags = "flags", format = "format", size = "size"]
        );
        let header = offset_of!(kvm_nested_state, hdr);
        count += held!(
            "nested-state",
            header,
            kvm_vmx_nested_state_hdr,
            "vmx.",
            [
                vmxon_pa = "vmxon_pa",
                vmcs12_pa = "vmcs12_pa",
                smm.flags = "smm.flags",
                pad = "pad",
                flags = "flags",
                preemption_timer_deadline = "preemption_timer_deadline",
            ]
        );
        count += held!("nested-state", header, kvm_svm_nested_state_hdr, "svm.", [vmcb_pa = "vmcb_pa"]);
        let xen = offset_of!(kvm_xen_vcpu_attr, u);
        count += held!(
            "xen-vcpu",
            xen,
            kvm_xen_vcpu_attr__bindgen_ty_1__bindgen_ty_1,
            "runstate.",
            [
                state = "state",
                state_entry_time = "state_entry_time",
                time_running = "time_running",
                time_runnable = "time_runnable",
                time_blocked = "time_blocked",
                time_offline = "time_offline",
            ]
        );
        count += held!(
            "xen-vcpu",
            xen,
            kvm_xen_vcpu_attr__bindgen_ty_1__bindgen_ty_2,
            "timer.",
            [port = "port", priority = "priority", expires_ns = "expires_ns",]
        );
        count += held!("xcrs", 0, kvm_xcrs, "", [nr_xcrs = "nr_xcrs", flags = "flags", padding = "padding"]);
        let xcr = offset_of!(kvm_xcrs, xcrs) + 15 * size_of::<kvm_xcr>();
        count +=
            held!("xcrs", xcr, kvm_xcr, "xcrs.15.", [xcr = "xcr", reserved = "reserved", value = "value"]);
        println!("{count} fields held against the bindings");
        assert!(count > 300);
    }

    #[test]
    fn sizes_are_those_of_the_bindings() {
        let sizes = [
            ("regs", size_of::<kvm_regs>()),
            ("sregs", size_of::<kvm_sregs>()),
            ("sregs2", size_of::<kvm_sregs2>()),
            ("fpu", size_of::<kvm_fpu>()),
            ("xcrs", size_of::<kvm_xcrs>()),
            ("xsave", size_of::<kvm_xsave>()),
            ("debugregs", size_of::<kvm_debugregs>()),
            ("vcpu-events", size_of::<kvm_vcpu_events>()),
            ("mp-state", size_of::<kvm_mp_state>()),
            ("lapic", size_of::<kvm_lapic_state>()),
            ("irqchip", 3 * size_of::<kvm_irqchip>()),
            ("pit2", size_of::<kvm_pit_state2>()),
            ("clock", size_of::<kvm_clock_data>()),
        ];
        for (name, size) in sizes {
            assert_eq!(section(name).unwrap().size as usize, size, "{name}");
        }
        for (name, size) in
            [("xen-vm", size_of::<kvm_xen_hvm_attr>()), ("xen-vcpu", size_of::<kvm_xen_vcpu_attr>())]
        {
            assert_eq!(section(name).unwrap().entry as usize, size, "{name}");
        }
        assert_eq!(section("nested-state").unwrap().tag_at as usize, offset_of!(kvm_nested_state, format));
        assert_eq!(field("nested-state", "vmx.vmcs12").at as usize, offset_of!(kvm_nested_state, data));
        let parts = ["svm.vmcb12", "svm.vmcb12.dr6", "svm.vmcb12.rest"];
        let sizes = parts.map(|part| field("nested-state", part).size);
        assert_eq!(sizes.iter().sum::<u32>(), KVM_STATE_NESTED_SVM_VMCB_SIZE);
        // The area of saved state begins at 0x400 of a VMCB, and has DR6 at 0x168 (APM volume 2, appendix B).
        assert_eq!(field("nested-state", "svm.vmcb12.dr6").at, 128 + 0x400 + 0x168);
        assert_eq!(field("nested-state", "vmx.vmcs12").size, KVM_STATE_NESTED_VMX_VMCS_SIZE);
    }

    #[test]
    fn tags_of_xen_are_those_of_the_bindings() {
        let tags = [
            ("xen-vm", "long_mode", KVM_XEN_ATTR_TYPE_LONG_MODE),
            ("xen-vm", "shared_info.gfn", KVM_XEN_ATTR_TYPE_SHARED_INFO),
            ("xen-vm", "vector", KVM_XEN_ATTR_TYPE_UPCALL_VECTOR),
            ("xen-vm", "xen_version", KVM_XEN_ATTR_TYPE_XEN_VERSION),
            ("xen-vm", "runstate_update_flag", KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG),
            ("xen-vcpu", "vcpu_info.gpa", KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO),
            ("xen-vcpu", "vcpu_time_info.gpa", KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO),
            ("xen-vcpu", "runstate.gpa", KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR),
            ("xen-vcpu", "runstate.current", KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT),
            ("xen-vcpu", "runstate.state", KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA),
            ("xen-vcpu", "vcpu_id", KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID),
            ("xen-vcpu", "timer.port", KVM_XEN_VCPU_ATTR_TYPE_TIMER),
            ("xen-vcpu", "vector", KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR),
        ];
        for (section, name, tag) in tags {
            assert_eq!(field(section, name).group, Some(tag), "{section}/{name}");
        }
    }
}

/// `struct fxregs_state` and `struct xstate_header` of arch/x86/include/asm/fpu/types.h, which have no bindings.
#[test]
fn the_extended_registers_are_where_the_cpu_puts_them() {
    for name in ["xsave", "xsave2"] {
        for (part, at) in
            [("fcw", 0), ("mxcsr", 24), ("st", 32), ("xmm", 160), ("xstate_bv", 512), ("ymmh", 576)]
        {
            assert_eq!(field(name, part).at, at, "{name}/{part}");
        }
    }
}

/// arch/x86/include/asm/apicdef.h.
#[test]
fn the_registers_of_the_apic_are_in_their_slots() {
    let registers = [
        ("ID", 0x20),
        ("LVR", 0x30),
        ("TASKPRI", 0x80),
        ("ARBPRI", 0x90),
        ("PROCPRI", 0xa0),
        ("EOI", 0xb0),
        ("LDR", 0xd0),
        ("DFR", 0xe0),
        ("SPIV", 0xf0),
        ("ISR", 0x100),
        ("TMR", 0x180),
        ("IRR", 0x200),
        ("ESR", 0x280),
        ("LVTCMCI", 0x2f0),
        ("ICR", 0x300),
        ("ICR2", 0x310),
        ("LVTT", 0x320),
        ("LVTTHMR", 0x330),
        ("LVTPC", 0x340),
        ("LVT0", 0x350),
        ("LVT1", 0x360),
        ("LVTERR", 0x370),
        ("TMICT", 0x380),
        ("TMCCT", 0x390),
        ("TDCR", 0x3e0),
        ("SELF_IPI", 0x3f0),
    ];
    for (name, at) in registers {
        assert_eq!(field("lapic", name).at, at, "{name}");
    }
}

/// arch/arm64/include/uapi/asm/kvm.h: `struct kvm_vcpu_events` and the KVM_DEV_ARM_VGIC_GRP_*; offsets of
/// include/linux/irqchip/arm-gic-v3.h and arm-gic.h; encodings of arch/arm64/tools/sysreg.
#[test]
fn arm64_is_as_its_headers_say() {
    let encoding =
        |op0: u32, op1: u32, crn: u32, crm: u32, op2: u32| op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
    let known = [
        ("arm64-vcpu-events", "exception.serror_has_esr", None, 1, 1),
        ("arm64-vcpu-events", "exception.serror_esr", None, 8, 8),
        ("arm64-pvtime", "IPA", Some(2), 0, 8),
        ("vgic-v3-config", "NR_IRQS", Some(3), 0, 4),
        ("vgic-v3-iidr", "GICD_IIDR", Some(1), 0x8, 4),
        ("vgic-v3-dist", "GICD_ISENABLER", Some(1), 0x100, 4),
        ("vgic-v3-dist", "GICD_ICACTIVER", Some(1), 0x380, 4),
        ("vgic-v3-dist", "GICD_IROUTER", Some(1), 0x6000, 4),
        ("vgic-v3-lpi-tables", "GICR_PENDBASER", Some(5), 0x78, 4),
        ("vgic-v3-redist", "GICR_WAKER", Some(5), 0x14, 4),
        ("vgic-v3-redist", "GICR_ICFGR", Some(5), 0x1_0c00, 4),
        ("vgic-v3-cpu", "ICC_PMR_EL1", Some(6), encoding(3, 0, 4, 6, 0), 8),
        ("vgic-v3-cpu", "ICC_AP1R0_EL1", Some(6), encoding(3, 0, 12, 9, 0), 8),
        ("vgic-v3-cpu", "ICC_IGRPEN1_EL1", Some(6), encoding(3, 0, 12, 12, 7), 8),
        ("vgic-v3-cpu", "ICH_LR_EL2", Some(6), encoding(3, 4, 12, 12, 0), 8),
        ("vgic-v3-line-levels", "LINE_LEVEL", Some(7), 0, 4),
        ("vgic-v2-cpu", "GICC_APR", Some(2), 0xd0, 4),
        ("vgic-v2-dist", "GICD_SPENDSGIR", Some(1), 0xf20, 4),
        ("its-regs", "GITS_BASER", Some(8), 0x100, 8),
        ("its-cbaser", "GITS_CBASER", Some(8), 0x80, 8),
    ];
    for (section, name, group, at, size) in known {
        let found = field(section, name);
        assert_eq!((found.group, found.at, found.size), (group, at, size), "{section}/{name}");
    }
    assert_eq!(section("arm64-vcpu-events").unwrap().size, 64);
}
