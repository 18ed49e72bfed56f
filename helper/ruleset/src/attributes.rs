//! Attributes of netlink messages.

/// Attributes of a netlink message, by type.
#[derive(Debug)]
pub struct Attributes<'a>(Vec<(u16, &'a [u8])>);

impl<'a> Attributes<'a> {
    /// Reads them as far as they are whole.
    #[must_use]
    pub fn of(mut bytes: &'a [u8]) -> Self {
        const TYPE: u16 = 0x3fff;
        let mut found = Vec::new();
        while let Some((head, _)) = bytes.split_at_checked(4) {
            let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
            let Some(value) = bytes.get(4..length) else { break };
            found.push((u16::from_ne_bytes([head[2], head[3]]) & TYPE, value));
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Self(found)
    }

    /// The bytes of the first of this type.
    #[must_use]
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.0.iter().find(|(k, _)| *k == kind).map(|(_, v)| *v)
    }

    /// The attributes in the first of this type.
    #[must_use]
    pub fn nested(&self, kind: u16) -> Option<Attributes<'a>> {
        self.get(kind).map(Attributes::of)
    }

    /// The text of the first of this type.
    #[must_use]
    pub fn text(&self, kind: u16) -> Option<String> {
        self.get(kind).map(text)
    }

    /// The number, in network order, of the first of this type.
    #[must_use]
    pub fn number(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// The long number, in network order, of the first of this type.
    #[must_use]
    pub fn long(&self, kind: u16) -> Option<u64> {
        self.get(kind)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// The bytes of all, in their order.
    pub fn values(&self) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().map(|(_, value)| *value)
    }
}

/// Text that a NUL may end.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
