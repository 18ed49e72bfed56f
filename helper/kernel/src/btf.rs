//! Enums of BTF, the kernel's type information (Documentation/bpf/btf.rst): of vmlinux, and of modules, whose BTF continues that of vmlinux.
//!
//! Every offset and length is checked, and what does not fit is not read: the text may be cut or of a newer format.

use crate::netlink::{half, word};

const MAGIC: u16 = 0xeb9f;
/// Sizes of `struct btf_header` up to the fields that are read, and of `struct btf_type`.
const HEADER: usize = 24;
const TYPE: usize = 12;
const KIND_ENUM: u32 = 6;
const KIND_ENUM64: u32 = 19;
/// Longer names do not exist in the kernel's enums.
const MAX_NAME: usize = 128;

/// The type information of the kernel or of one module.
#[derive(Debug, Clone, Copy)]
pub struct Btf<'a> {
    types: &'a [u8],
    strings: &'a [u8],
    /// Strings of vmlinux, which those of a module continue.
    base: &'a [u8],
}

impl<'a> Btf<'a> {
    /// Type information that stands alone, in this machine's byte order; `None` for anything else.
    #[must_use]
    pub fn parse(text: &'a [u8]) -> Option<Self> {
        if half(text, 0)? != MAGIC {
            return None;
        }
        let number = |at| usize::try_from(word(text, at)?).ok();
        let header = number(4).filter(|length| *length >= HEADER)?;
        let section = |offset: usize, length: usize| {
            let start = header.checked_add(number(offset)?)?;
            text.get(start..start.checked_add(number(length)?)?)
        };
        Some(Self { types: section(8, 12)?, strings: section(16, 20)?, base: &[] })
    }

    /// Type information of a module, which continues that of `vmlinux`.
    #[must_use]
    pub fn parse_module(text: &'a [u8], vmlinux: &Self) -> Option<Self> {
        Some(Self { base: vmlinux.strings, ..Self::parse(text)? })
    }

    /// Its enums, without those of the base. Ends at a type of unknown kind, whose size is not known.
    pub fn enums(&self) -> impl Iterator<Item = Enum<'a>> + use<'a> {
        let btf = *self;
        let mut rest = self.types;
        std::iter::from_fn(move || {
            loop {
                let (name, info) = (word(rest, 0)?, word(rest, 4)?);
                let (kind, count) = (info >> 24 & 0x1f, usize::try_from(info & 0xffff).ok()?);
                let values = rest.get(TYPE..TYPE + behind(kind, count)?)?;
                rest = &rest[TYPE + values.len()..];
                let wide = kind == KIND_ENUM64;
                if (kind == KIND_ENUM || wide)
                    && let Some(name) = btf.name(name)
                {
                    return Some(Enum { name, btf, values, wide });
                }
            }
        })
    }

    /// A name by its offset in the strings of base and module; `None` for an empty one.
    fn name(&self, offset: u32) -> Option<&'a str> {
        let offset = usize::try_from(offset).ok()?;
        let text = match offset.checked_sub(self.base.len()) {
            Some(offset) => self.strings.get(offset..)?,
            None => &self.base[offset..],
        };
        let end = text.iter().take(MAX_NAME).position(|byte| *byte == 0).filter(|end| *end > 0)?;
        std::str::from_utf8(&text[..end]).ok()
    }
}

/// Bytes behind `struct btf_type`, by kind and number of members.
fn behind(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // INT, VAR, DECL_TAG.
        1 | 14 | 17 => 4,
        // ARRAY.
        3 => 12,
        // STRUCT, UNION, DATASEC.
        4 | 5 | 15 | KIND_ENUM64 => 12 * count,
        // FUNC_PROTO.
        KIND_ENUM | 13 => 8 * count,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT, TYPE_TAG.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

/// An enum that has a name.
#[derive(Debug, Clone, Copy)]
pub struct Enum<'a> {
    /// Its name.
    pub name: &'a str,
    btf: Btf<'a>,
    values: &'a [u8],
    wide: bool,
}

impl<'a> Enum<'a> {
    /// Names and values of its enumerators that fit in 32 bits, in their order.
    pub fn values(&self) -> impl Iterator<Item = (&'a str, u32)> + use<'a> {
        let Self { btf, values, wide, .. } = *self;
        values.chunks_exact(if wide { 12 } else { 8 }).filter_map(move |value| {
            if wide && word(value, 8)? != 0 {
                return None;
            }
            Some((btf.name(word(value, 0)?)?, word(value, 4)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, whether its values have 64 bits, and enumerators.
    type Written<'a> = (&'a str, bool, &'a [(&'a str, u32)]);

    /// Type information with these enums, behind types of other kinds; its strings continue `base` bytes.
    fn written(enums: &[Written<'_>], base: usize) -> Vec<u8> {
        let mut types = Vec::new();
        let mut strings = vec![0];
        let mut name = |text: &str| {
            let offset = base + strings.len();
            strings.extend(text.as_bytes());
            strings.push(0);
            u32::try_from(offset).expect("small")
        };
        let mut put = |words: &[u32]| words.iter().for_each(|w| types.extend(w.to_ne_bytes()));
        // int, a struct of two members, a function's prototype with one parameter, a pointer.
        put(&[name("int"), 1 << 24, 4, 32]);
        put(&[name("pair"), 4 << 24 | 2, 8, name("a"), 1, 0, name("b"), 1, 32]);
        put(&[0, 13 << 24 | 1, 1, name("of"), 1, 0, 2 << 24, 1]);
        for (text, wide, values) in enums {
            let kind = if *wide { KIND_ENUM64 } else { KIND_ENUM };
            put(&[name(text), kind << 24 | u32::try_from(values.len()).expect("few"), 4]);
            for (text, value) in *values {
                put(&[name(text), *value]);
                if *wide {
                    put(&[0]);
                }
            }
        }
        let (types_length, strings_length) = (types.len(), strings.len());
        let mut text = Vec::new();
        text.extend(MAGIC.to_ne_bytes());
        text.extend([1, 0]);
        for word in [HEADER, 0, types_length, types_length, strings_length] {
            text.extend(u32::try_from(word).expect("small").to_ne_bytes());
        }
        text.extend(types);
        text.extend(strings);
        text
    }

    fn read(btf: &Btf<'_>) -> Vec<(String, Vec<(String, u32)>)> {
        btf.enums().map(|e| (e.name.to_owned(), e.values().map(|(n, v)| (n.to_owned(), v)).collect())).collect()
    }

    const COLOURS: Written<'_> = ("colour", false, &[("RED", 1), ("GREEN", 0xffff_0000)]);
    const LARGE: Written<'_> = ("large", true, &[("BIG", 7)]);

    #[test]
    fn enums_are_read_as_they_are_written() {
        let text = written(&[COLOURS, LARGE], 0);
        let expected = [
            ("colour".to_owned(), vec![("RED".to_owned(), 1), ("GREEN".to_owned(), 0xffff_0000)]),
            ("large".to_owned(), vec![("BIG".to_owned(), 7)]),
        ];
        assert_eq!(read(&Btf::parse(&text).expect("BTF")), expected);
    }

    #[test]
    fn names_of_a_module_may_lie_in_vmlinux() {
        let vmlinux = written(&[LARGE], 0);
        let vmlinux = Btf::parse(&vmlinux).expect("BTF");
        let mut text = written(&[COLOURS], vmlinux.strings.len());
        let module = Btf::parse_module(&text, &vmlinux).expect("BTF");
        assert_eq!(read(&module)[0].1, [("RED".to_owned(), 1), ("GREEN".to_owned(), 0xffff_0000)]);
        // The first enumerator now has the name of one of vmlinux.
        let big = u32::try_from(vmlinux.strings.windows(3).position(|w| w == b"BIG").expect("a name")).expect("small");
        let green = text.windows(4).position(|w| w == 0xffff_0000u32.to_ne_bytes()).expect("a value");
        text[green - 12..green - 8].copy_from_slice(&big.to_ne_bytes());
        assert_eq!(read(&Btf::parse_module(&text, &vmlinux).expect("BTF"))[0].1[0].0, "BIG");
    }

    #[test]
    fn what_is_damaged_is_read_as_far_as_it_is_whole() {
        let whole = written(&[COLOURS, LARGE], 0);
        for end in 0..whole.len() {
            assert!(Btf::parse(&whole[..end]).is_none(), "cut at {end}");
        }
        let mut state = 1u32;
        for _ in 0..20_000 {
            let mut text = whole.clone();
            for _ in 0..4 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let at = (state >> 8) as usize % text.len();
                text[at] = (state & 0xff) as u8;
            }
            if let Some(btf) = Btf::parse(&text) {
                assert!(read(&btf).len() <= text.len());
                read(&Btf::parse_module(&text, &btf).expect("it was parsed before"));
            }
        }
    }

    #[test]
    fn the_kernels_own_enums_are_found() {
        let Ok(text) = std::fs::read("/sys/kernel/btf/vmlinux") else { return };
        let btf = Btf::parse(&text).expect("the kernel's BTF");
        let attach = btf.enums().find(|e| e.name == "bpf_attach_type").expect("an enum of every kernel with BTF");
        assert_eq!(attach.values().next(), Some(("BPF_CGROUP_INET_INGRESS", 0)));
        assert_eq!(libbpf_rs::btf::Btf::from_path("/sys/kernel/btf/vmlinux").map(|b| count(&b)).ok(), Some(btf.enums().count()));
    }

    fn count(btf: &libbpf_rs::btf::Btf<'_>) -> usize {
        use libbpf_rs::btf::types::{Enum, Enum64};
        btf.type_by_kind::<Enum<'_>>().filter(|e| e.name().is_some()).count()
            + btf.type_by_kind::<Enum64<'_>>().filter(|e| e.name().is_some()).count()
    }
}
