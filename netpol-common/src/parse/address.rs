//! Addresses as the datapath handles them: both families in 128 bits, compared and moved a word at a time.

use crate::abi::mapped;

/// An address, IPv4 in its IPv4-mapped form, as four words in network order.
///
/// Words, not bytes: on the BPF target a comparison of byte arrays becomes a call or sixteen loads.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct Address([u32; 4]);

const MAPPED_PREFIX: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
const LINK_LOCAL_PREFIX: [u8; 2] = [0xfe, 0x80];

impl Address {
    /// `::`, which also stands for "no address".
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// From its sixteen bytes in network order.
    #[must_use]
    #[inline(always)]
    pub const fn new(b: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([b[0], b[1], b[2], b[3]]),
            u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
            u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            u32::from_ne_bytes([b[12], b[13], b[14], b[15]]),
        ])
    }

    /// From an IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn v4(b: [u8; 4]) -> Self {
        Self([0, 0, MAPPED_PREFIX, u32::from_ne_bytes(b)])
    }

    /// The sixteen bytes, as map keys hold them.
    #[must_use]
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 16] {
        let [a, b, c, d] =
            [self.0[0].to_ne_bytes(), self.0[1].to_ne_bytes(), self.0[2].to_ne_bytes(), self.0[3].to_ne_bytes()];
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// The four words, each with its bytes in network order.
    #[must_use]
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        self.0
    }

    /// Whether this is an IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] | self.0[1] == 0 && self.0[2] == MAPPED_PREFIX
    }

    /// Whether both are the same address.
    #[must_use]
    #[inline(always)]
    pub const fn same(self, other: Self) -> bool {
        let Self([a0, a1, a2, a3]) = self;
        let Self([b0, b1, b2, b3]) = other;
        (a0 ^ b0) | (a1 ^ b1) | (a2 ^ b2) | (a3 ^ b3) == 0
    }

    /// `::` or 0.0.0.0.
    #[must_use]
    #[inline(always)]
    pub const fn is_unspecified(self) -> bool {
        self.same(Self::UNSPECIFIED) || self.same(Self::v4([0; 4]))
    }

    /// A multicast group of either family, or the limited broadcast address. A subnet's own broadcast address looks
    /// like any other: the datapath does not know the prefix.
    #[must_use]
    #[inline(always)]
    pub const fn is_multicast(self) -> bool {
        if self.is_v4() {
            let [a, ..] = self.0[3].to_ne_bytes();
            a & 0xf0 == 0xe0 || self.0[3] == u32::MAX
        } else {
            let [a, ..] = self.0[0].to_ne_bytes();
            a == 0xff
        }
    }

    /// fe80::/10.
    #[must_use]
    #[inline(always)]
    pub const fn is_link_local(self) -> bool {
        let [a, b, ..] = self.0[0].to_ne_bytes();
        a == LINK_LOCAL_PREFIX[0] && b & 0xc0 == LINK_LOCAL_PREFIX[1]
    }

    /// The link-local address that a device with this Ethernet address gives itself (modified EUI-64, RFC 4291 A),
    /// which is what the kernel does unless `addr_gen_mode` says otherwise.
    #[must_use]
    #[inline(always)]
    pub const fn link_local_of([a, b, c, d, e, f]: [u8; 6]) -> Self {
        Self::new([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

impl PartialEq for Address {
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        self.same(*other)
    }
}

impl Eq for Address {}

const _: () = assert!(Address::v4([10, 1, 2, 3]).same(Address::new(mapped([10, 1, 2, 3]))));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_kept_in_its_mapped_form() {
        let address = Address::v4([10, 0, 0, 7]);
        assert!(address.is_v4());
        assert_eq!(address.bytes(), mapped([10, 0, 0, 7]));
        assert_eq!(Address::new(address.bytes()), address);
        assert!(!Address::new([0x20; 16]).is_v4());
    }

    #[test]
    fn groups_and_the_limited_broadcast_are_multicast() {
        assert!(Address::v4([224, 0, 0, 251]).is_multicast());
        assert!(Address::v4([239, 255, 255, 255]).is_multicast());
        assert!(Address::v4([255; 4]).is_multicast());
        assert!(!Address::v4([240, 0, 0, 1]).is_multicast());
        assert!(!Address::v4([10, 244, 0, 255]).is_multicast());
        let mut group = [0; 16];
        group[0] = 0xff;
        assert!(Address::new(group).is_multicast());
    }

    #[test]
    fn the_link_local_address_follows_the_ethernet_address() {
        let expected = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x58, 0x11, 0x22, 0xff, 0xfe, 0x33, 0x44, 0x55];
        let address = Address::link_local_of([0x5a, 0x11, 0x22, 0x33, 0x44, 0x55]);
        assert_eq!(address.bytes(), expected);
        assert!(address.is_link_local());
        assert!(!Address::v4([169, 254, 1, 1]).is_link_local());
    }
}
