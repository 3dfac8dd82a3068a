//! The system call ABIs a filter can speak about, and how a filter recognises them.
//!
//! A filter sees one word for the architecture and one for the call number. On x86 that is not enough: a call through the
//! x32 ABI arrives with the very word of x86-64, told apart only by bit 30 of its number. Everything that has to know this
//! asks [`Architecture::number_base`] and [`Architecture::audit_word`].

use oci_spec::runtime::Arch;

/// One system call ABI with a number table of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Architecture {
    /// x86-64, native 64-bit calls.
    X86_64,
    /// 32-bit x86, also reached from 64-bit code by `int 0x80`.
    X86,
    /// x32: 64-bit registers, 32-bit pointers, numbers with bit 30 set.
    X32,
    /// 64-bit ARM.
    Aarch64,
    /// 32-bit ARM, EABI.
    Arm,
    /// 64-bit RISC-V.
    Riscv64,
    /// 64-bit LoongArch.
    Loongarch64,
    /// Little-endian 64-bit POWER.
    Ppc64le,
    /// 64-bit z/Architecture.
    S390x,
}

/// The bit that marks a call number as one of the x32 ABI (`__X32_SYSCALL_BIT`).
pub const X32_SYSCALL_BIT: u32 = 0x4000_0000;

impl Architecture {
    /// Every architecture, in the order of the columns of the call table.
    pub const ALL: [Architecture; 9] = [
        Self::X86_64,
        Self::X86,
        Self::X32,
        Self::Aarch64,
        Self::Arm,
        Self::Riscv64,
        Self::Loongarch64,
        Self::Ppc64le,
        Self::S390x,
    ];

    /// The architecture this program was built for; `None` where there is no call table for it.
    #[must_use]
    pub const fn native() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "x86") {
            Some(Self::X86)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else if cfg!(target_arch = "arm") {
            Some(Self::Arm)
        } else if cfg!(target_arch = "riscv64") {
            Some(Self::Riscv64)
        } else if cfg!(target_arch = "loongarch64") {
            Some(Self::Loongarch64)
        } else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
            Some(Self::Ppc64le)
        } else if cfg!(target_arch = "s390x") {
            Some(Self::S390x)
        } else {
            None
        }
    }

    /// The architecture that the runtime-spec's constant names; `None` where there is no call table for it.
    #[must_use]
    pub fn from_oci(arch: Arch, native: Self) -> Option<Self> {
        Some(match arch {
            Arch::ScmpArchNative => native,
            Arch::ScmpArchX86 => Self::X86,
            Arch::ScmpArchX86_64 => Self::X86_64,
            Arch::ScmpArchX32 => Self::X32,
            Arch::ScmpArchArm => Self::Arm,
            Arch::ScmpArchAarch64 => Self::Aarch64,
            Arch::ScmpArchRiscv64 => Self::Riscv64,
            Arch::ScmpArchLoongarch64 => Self::Loongarch64,
            Arch::ScmpArchPpc64le => Self::Ppc64le,
            Arch::ScmpArchS390x => Self::S390x,
            _ => return None,
        })
    }

    /// The runtime-spec's constant for this architecture.
    #[must_use]
    pub fn to_oci(self) -> Arch {
        match self {
            Self::X86_64 => Arch::ScmpArchX86_64,
            Self::X86 => Arch::ScmpArchX86,
            Self::X32 => Arch::ScmpArchX32,
            Self::Aarch64 => Arch::ScmpArchAarch64,
            Self::Arm => Arch::ScmpArchArm,
            Self::Riscv64 => Arch::ScmpArchRiscv64,
            Self::Loongarch64 => Arch::ScmpArchLoongarch64,
            Self::Ppc64le => Arch::ScmpArchPpc64le,
            Self::S390x => Arch::ScmpArchS390x,
        }
    }

    /// The word in `seccomp_data.arch` (`AUDIT_ARCH_*` of linux/audit.h); x32 shares that of x86-64.
    #[must_use]
    pub const fn audit_word(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
            Self::Arm => 0x4000_0028,
            Self::Riscv64 => 0xc000_00f3,
            Self::Loongarch64 => 0xc000_0102,
            Self::Ppc64le => 0xc000_0015,
            Self::S390x => 0x8000_0016,
        }
    }

    /// What is added to a table number to get the number a filter sees.
    #[must_use]
    pub const fn number_base(self) -> u32 {
        match self {
            Self::X32 => X32_SYSCALL_BIT,
            _ => 0,
        }
    }

    /// Whether arguments are compared as 64-bit values. The 32-bit ABIs, x32 among them, compare the low word, as libseccomp does.
    #[must_use]
    pub const fn compares_64_bits(self) -> bool {
        !matches!(self, Self::X86 | Self::X32 | Self::Arm)
    }

    /// Whether the high word of an argument comes first in memory.
    #[must_use]
    pub const fn is_big_endian(self) -> bool {
        matches!(self, Self::S390x)
    }

    /// Whether sockets and System V IPC are (also) reached through `socketcall` and `ipc`.
    #[must_use]
    pub const fn multiplexes(self) -> bool {
        matches!(self, Self::X86 | Self::S390x | Self::Ppc64le)
    }

    /// The 32-bit relatives that container engines list beside a native architecture (Docker's `archMap`).
    #[must_use]
    pub const fn relatives(self) -> &'static [Architecture] {
        match self {
            Self::X86_64 => &[Self::X86, Self::X32],
            Self::Aarch64 => &[Self::Arm],
            _ => &[],
        }
    }
}
