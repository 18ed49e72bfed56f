//! Names of the drop reasons of subsystems: Open vSwitch, qdisc, mac80211.
//!
//! The upper bits of such a reason number the subsystem (`enum skb_drop_reason_subsys`), and an enum whose name ends in `drop_reason` has
//! the names: in vmlinux, or in the module that is the subsystem. All numbers are read from BTF, because they differ between kernels.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use sockpath_kernel::btf::{Btf, Enum};

/// Type information of the kernel and of each loaded module.
const DIRECTORY: &str = "/sys/kernel/btf";
const KERNEL: &str = "vmlinux";
/// That of vmlinux has 5 MiB in distributions' kernels.
const MAX_TEXT: u64 = 64 << 20;
/// Bytes that are read of modules during a trace. Most modules have less than 100 KiB.
const MAX_MODULES: u64 = 64 << 20;

/// What the names of their enums end in.
const REASONS: &str = "drop_reason";
const ALL: &str = "skb_drop_reason";
const MASK: &str = "SKB_DROP_REASON_SUBSYS_MASK";
const SUBSYSTEMS: &str = "skb_drop_reason_subsys";
const PREFIX: &str = "SKB_DROP_REASON_SUBSYS_";

/// Reads names when a reason first needs them, since most traces see no such drop and modules may be loaded during a trace.
#[derive(Debug)]
pub struct Subsystems {
    directory: PathBuf,
    /// The bits of a reason that number its subsystem; 0 as long as vmlinux is not read, and where it has none.
    mask: u32,
    /// Names of the subsystems, by these bits of their reasons.
    subsystems: HashMap<u32, String>,
    /// Names of their reasons.
    reasons: HashMap<u32, String>,
    /// Modules that were read, and vmlinux.
    read: HashSet<String>,
    /// Bytes that may still be read of modules.
    budget: u64,
}

impl Default for Subsystems {
    fn default() -> Self {
        Self::below(Path::new(DIRECTORY))
    }
}

impl Subsystems {
    fn below(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            mask: 0,
            subsystems: HashMap::new(),
            reasons: HashMap::new(),
            read: HashSet::new(),
            budget: MAX_MODULES,
        }
    }

    /// The name of a subsystem's reason; its number with the subsystem's name where no enum has it. `None` for reasons of the core, and
    /// where the subsystem is unknown.
    pub fn name(&mut self, reason: u32) -> Option<String> {
        if !self.read.contains(KERNEL) || !self.has_reasons(reason) {
            self.read(reason);
        }
        let subsystem = self.subsystems.get(&(reason & self.mask)).filter(|_| reason & self.mask != 0)?;
        Some(self.reasons.get(&reason).cloned().unwrap_or_else(|| format!("{subsystem}_REASON_{reason:#x}")))
    }

    /// Whether the enum of this reason's subsystem was found.
    fn has_reasons(&self, reason: u32) -> bool {
        reason & self.mask == 0 || self.reasons.keys().any(|known| known & self.mask == reason & self.mask)
    }

    /// Reads vmlinux, the first time, and modules until one has the reasons of this one's subsystem.
    fn read(&mut self, reason: u32) {
        let modules = self.unread();
        let is_first = self.read.insert(KERNEL.to_owned());
        if !is_first && modules.is_empty() {
            return;
        }
        let Some(text) = read_at_most(&self.directory.join(KERNEL), MAX_TEXT) else { return };
        let Some(vmlinux) = Btf::parse(&text) else { return };
        if is_first {
            self.take_kernel(&vmlinux);
        }
        let Some(subsystem) = self.subsystems.get(&(reason & self.mask)).map(|name| name.to_ascii_lowercase()) else { return };
        let (likely, others): (Vec<_>, Vec<_>) = modules.into_iter().partition(|module| subsystem.starts_with(module));
        for module in likely.into_iter().chain(others) {
            if self.has_reasons(reason) {
                return;
            }
            let text = read_at_most(&self.directory.join(&module), self.budget).unwrap_or_default();
            self.budget = self.budget.saturating_sub(text.len() as u64);
            if let Some(btf) = Btf::parse_module(&text, &vmlinux) {
                self.take_reasons(btf.enums());
            }
            self.read.insert(module);
        }
    }

    /// The loaded modules that were not read.
    fn unread(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut modules: Vec<_> = names.filter(|name| name != KERNEL && !self.read.contains(name)).collect();
        modules.sort_unstable();
        modules
    }

    /// Takes mask, subsystems and reasons out of the kernel's enums, in one pass over all its types.
    fn take_kernel(&mut self, vmlinux: &Btf<'_>) {
        let enums: Vec<Enum<'_>> = vmlinux.enums().filter(|e| e.name.ends_with(REASONS) || e.name == SUBSYSTEMS).collect();
        let values = |name: &'static str| enums.iter().filter(move |e| e.name == name).flat_map(Enum::values);
        let Some((_, mask)) = values(ALL).find(|(name, mask)| *name == MASK && *mask != 0) else { return };
        self.mask = mask;
        let named = values(SUBSYSTEMS).filter_map(|(name, number)| {
            let name = name.strip_prefix(PREFIX).filter(|name| *name != "NUM")?;
            Some((number.checked_shl(mask.trailing_zeros())? & mask, name.to_owned()))
        });
        self.subsystems = named.collect();
        self.take_reasons(enums.into_iter());
    }

    /// Takes the reasons of subsystems out of all enums of reasons. Enumerators that mark the begin or end of an enum are not reasons.
    fn take_reasons<'a>(&mut self, enums: impl Iterator<Item = Enum<'a>>) {
        let mask = self.mask;
        let enums = enums.filter(|e| e.name.ends_with(REASONS) && e.name != ALL);
        let is_reason = |name: &str| !name.starts_with("__") && !name.ends_with("_MAX");
        for (name, value) in enums.flat_map(|e| e.values()).filter(|(name, value)| value & mask != 0 && is_reason(name)) {
            self.reasons.entry(value).or_insert_with(|| name.to_owned());
        }
    }
}

/// A file; `None` if it cannot be read or is larger.
fn read_at_most(path: &Path, limit: u64) -> Option<Vec<u8>> {
    let file = File::open(path).ok()?;
    let size = file.metadata().map_or(0, |m| m.len().min(limit));
    let mut text = Vec::with_capacity(usize::try_from(size).ok()?);
    file.take(limit.saturating_add(1)).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= limit).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    type EnumText<'a> = (&'a str, &'a [(&'a str, u32)]);

    /// BTF with these enums, whose strings continue `base` bytes; and the length of its own.
    fn written(enums: &[EnumText<'_>], base: usize) -> (Vec<u8>, usize) {
        let (mut types, mut strings) = (Vec::new(), vec![0]);
        let mut name = |text: &str| {
            let offset = u32::try_from(base + strings.len()).expect("small");
            strings.extend(text.as_bytes());
            strings.push(0);
            offset
        };
        for (text, values) in enums {
            let head = [name(text), 6 << 24 | u32::try_from(values.len()).expect("few"), 4];
            let values = values.iter().flat_map(|(text, value)| [name(text), *value]);
            types.extend(head.into_iter().chain(values).flat_map(u32::to_ne_bytes));
        }
        let lengths = [24, 0, types.len(), types.len(), strings.len()].map(|n| u32::try_from(n).expect("small").to_ne_bytes());
        let text = [&0xeb9fu16.to_ne_bytes()[..], &[1, 0], &lengths.concat(), &types, &strings].concat();
        (text, strings.len())
    }

    const CORE: EnumText<'static> = (ALL, &[("SKB_DROP_REASON_NO_SOCKET", 3), (MASK, 0xffff_0000)]);
    const NUMBERS: EnumText<'static> = (
        SUBSYSTEMS,
        &[
            ("SKB_DROP_REASON_SUBSYS_CORE", 0),
            ("SKB_DROP_REASON_SUBSYS_MAC80211_UNUSABLE", 1),
            ("SKB_DROP_REASON_SUBSYS_OPENVSWITCH", 2),
            ("SKB_DROP_REASON_SUBSYS_QDISC", 3),
            ("SKB_DROP_REASON_SUBSYS_NUM", 4),
        ],
    );
    const QDISC: EnumText<'static> =
        ("qdisc_drop_reason", &[("QDISC_DROP_UNSPEC", 0), ("__QDISC_DROP_REASON", 3 << 16), ("QDISC_DROP_OVERLIMIT", 3 << 16 | 2)]);
    const OVS: EnumText<'static> = (
        "ovs_drop_reason",
        &[
            ("__OVS_DROP_REASON", 2 << 16),
            ("OVS_DROP_LAST_ACTION", 2 << 16 | 1),
            ("OVS_DROP_EXPLICIT", 2 << 16 | 3),
            ("OVS_DROP_MAX", 2 << 16 | 4),
        ],
    );

    /// A directory like /sys/kernel/btf, and the length of vmlinux's strings.
    struct Written(PathBuf, usize);

    impl Written {
        fn new(test: &str, enums: &[EnumText<'_>]) -> Self {
            let directory = std::env::temp_dir().join(format!("sockpath-btf-{test}-{}", std::process::id()));
            fs::create_dir_all(&directory).expect("a directory");
            let (text, strings) = written(enums, 0);
            let written = Self(directory, strings);
            written.put("vmlinux", &text);
            written
        }

        fn put(&self, name: &str, text: &[u8]) {
            fs::write(self.0.join(name), text).expect("a file");
        }

        fn load(&self, module: &str, enums: &[EnumText<'_>]) {
            self.put(module, &written(enums, self.1).0);
        }
    }

    impl Drop for Written {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn reasons_are_named_by_the_enums_of_kernel_and_module() {
        let kernel = Written::new("names", &[CORE, NUMBERS, QDISC]);
        kernel.load("openvswitch", &[OVS]);
        let mut subsystems = Subsystems::below(&kernel.0);
        assert_eq!(subsystems.name(2 << 16 | 3).as_deref(), Some("OVS_DROP_EXPLICIT"));
        assert_eq!(subsystems.name(3 << 16 | 2).as_deref(), Some("QDISC_DROP_OVERLIMIT"));
        assert_eq!(subsystems.name(3), None, "it is of the core");
    }

    #[test]
    fn an_unknown_reason_keeps_its_number_and_the_name_of_its_subsystem() {
        let kernel = Written::new("numbers", &[CORE, NUMBERS, QDISC]);
        kernel.load("openvswitch", &[OVS]);
        let mut subsystems = Subsystems::below(&kernel.0);
        // Not what marks the end of the enum.
        assert_eq!(subsystems.name(2 << 16 | 4).as_deref(), Some("OPENVSWITCH_REASON_0x20004"));
        assert_eq!(subsystems.name(1 << 16 | 5).as_deref(), Some("MAC80211_UNUSABLE_REASON_0x10005"));
        assert_eq!(subsystems.name(9 << 16 | 1), None, "no subsystem has that number");
    }

    #[test]
    fn a_module_that_is_loaded_later_is_read() {
        let kernel = Written::new("later", &[CORE, NUMBERS]);
        kernel.load("bridge", &[("br_state", &[("BR_STATE_ON", 2 << 16 | 1)])]);
        let mut subsystems = Subsystems::below(&kernel.0);
        assert_eq!(subsystems.name(2 << 16 | 1).as_deref(), Some("OPENVSWITCH_REASON_0x20001"));
        kernel.load("openvswitch", &[OVS]);
        assert_eq!(subsystems.name(2 << 16 | 1).as_deref(), Some("OVS_DROP_LAST_ACTION"));
    }

    #[test]
    fn the_module_may_have_another_name_than_the_subsystem() {
        let kernel = Written::new("other", &[CORE, NUMBERS]);
        kernel.load("vendor_switch", &[OVS]);
        kernel.load("zz", &[QDISC]);
        let mut subsystems = Subsystems::below(&kernel.0);
        assert_eq!(subsystems.name(2 << 16 | 1).as_deref(), Some("OVS_DROP_LAST_ACTION"));
        assert!(!subsystems.read.contains("zz"), "reading ends with the module that has the reasons");
    }

    #[test]
    fn damaged_type_information_names_nothing() {
        let kernel = Written::new("damaged", &[CORE, NUMBERS]);
        let (module, _) = written(&[OVS], kernel.1);
        for end in 0..module.len() {
            kernel.put("openvswitch", &module[..end]);
            let mut subsystems = Subsystems::below(&kernel.0);
            assert_eq!(subsystems.name(2 << 16 | 3).as_deref(), Some("OPENVSWITCH_REASON_0x20003"), "cut at {end}");
        }
        let (vmlinux, _) = written(&[CORE, NUMBERS], 0);
        for end in 0..vmlinux.len() {
            kernel.put("vmlinux", &vmlinux[..end]);
            assert_eq!(Subsystems::below(&kernel.0).name(2 << 16 | 3), None, "cut at {end}");
        }
    }

    #[test]
    fn a_module_that_is_too_large_is_not_read() {
        let kernel = Written::new("large", &[CORE, NUMBERS]);
        kernel.load("openvswitch", &[OVS]);
        let mut subsystems = Subsystems { budget: 20, ..Subsystems::below(&kernel.0) };
        assert_eq!(subsystems.name(2 << 16 | 3).as_deref(), Some("OPENVSWITCH_REASON_0x20003"));
    }

    #[test]
    fn a_kernel_without_subsystems_has_no_names() {
        let kernel = Written::new("none", &[(ALL, &[("SKB_DROP_REASON_NO_SOCKET", 3)])]);
        assert_eq!(Subsystems::below(&kernel.0).name(2 << 16 | 3), None);
        assert_eq!(Subsystems::below(Path::new("/nonexistent")).name(2 << 16 | 3), None);
    }

    #[test]
    fn this_kernels_subsystems_are_known() {
        let Ok(text) = fs::read(format!("{DIRECTORY}/vmlinux")) else { return };
        let numbers = Btf::parse(&text).and_then(|btf| btf.enums().find(|e| e.name == SUBSYSTEMS).map(|e| e.values().collect::<Vec<_>>()));
        let Some(numbers) = numbers else { return };
        let (_, number) = numbers.iter().find(|(name, _)| name.ends_with("OPENVSWITCH")).expect("6.6 and later have it");
        let name = Subsystems::default().name(number << 16 | 0xffff);
        assert_eq!(name, Some(format!("OPENVSWITCH_REASON_{:#x}", number << 16 | 0xffff)));
    }
}
