//! User data of rules and elements, in which nft keeps comments.

use sockpath_netlink::text;

/// nft keeps a comment in user data: type, length, value (libnftnl's udata.h); type 0 is the comment, of rules and of elements.
#[must_use]
pub fn user_comment(mut data: &[u8]) -> Option<String> {
    while let [kind, length, rest @ ..] = data {
        let value = rest.get(..usize::from(*length))?;
        if *kind == 0 {
            return Some(text(value));
        }
        data = rest.get(usize::from(*length)..)?;
    }
    None
}
