//! The part of `munge.h` (0.5.15; unchanged since 0.5) that is used, by hand. A test compares the numbers with the
//! installed header.

use std::ffi::{c_char, c_int, c_long, c_void};

/// `munge_ctx_t` points to one of these.
#[repr(C)]
pub struct Context {
    _opaque: [u8; 0],
    // Not Send, not Sync, not Unpin: the library owns it.
    _marker: std::marker::PhantomData<(*mut u8, std::marker::PhantomPinned)>,
}

/// `time_t` of the 64-bit ABIs that Slurm is built for.
pub type Time = c_long;

/// Declares the constants once, for the code and for the test that reads the header.
macro_rules! constants {
    ($($name:ident = $value:literal),* $(,)?) => {
        $(pub const $name: c_int = $value;)*
        #[cfg(all(test, has_munge_header))]
        pub const ALL: &[(&str, c_int)] = &[$((stringify!($name), $value)),*];
    };
}

constants! {
    MUNGE_OPT_TTL = 4,
    MUNGE_OPT_ADDR4 = 5,
    MUNGE_OPT_ENCODE_TIME = 6,
    MUNGE_OPT_SOCKET = 8,
    MUNGE_OPT_UID_RESTRICTION = 9,
    EMUNGE_SUCCESS = 0,
    EMUNGE_BAD_LENGTH = 3,
    EMUNGE_SOCKET = 6,
    EMUNGE_TIMEOUT = 7,
    EMUNGE_BAD_CRED = 8,
    EMUNGE_BAD_VERSION = 9,
    EMUNGE_BAD_CIPHER = 10,
    EMUNGE_BAD_MAC = 11,
    EMUNGE_BAD_ZIP = 12,
    EMUNGE_BAD_REALM = 13,
    EMUNGE_CRED_INVALID = 14,
    EMUNGE_CRED_EXPIRED = 15,
    EMUNGE_CRED_REWOUND = 16,
    EMUNGE_CRED_REPLAYED = 17,
    EMUNGE_CRED_UNAUTHORIZED = 18,
}

unsafe extern "C" {
    pub fn munge_encode(cred: *mut *mut c_char, ctx: *mut Context, buf: *const c_void, len: c_int) -> c_int;
    pub fn munge_decode(
        cred: *const c_char,
        ctx: *mut Context,
        buf: *mut *mut c_void,
        len: *mut c_int,
        uid: *mut u32,
        gid: *mut u32,
    ) -> c_int;
    pub fn munge_strerror(error: c_int) -> *const c_char;
    pub fn munge_ctx_create() -> *mut Context;
    pub fn munge_ctx_destroy(ctx: *mut Context);
    pub fn munge_ctx_strerror(ctx: *mut Context) -> *const c_char;
    pub fn munge_ctx_get(ctx: *mut Context, opt: c_int, ...) -> c_int;
    pub fn munge_ctx_set(ctx: *mut Context, opt: c_int, ...) -> c_int;
    /// free(3): what libmunge allocates is the caller's to free.
    pub fn free(memory: *mut c_void);
}

#[cfg(all(test, has_munge_header))]
mod tests {
    /// `NAME = 4,` anywhere in the header, whatever the blanks.
    fn in_header(header: &str, name: &str) -> Option<i32> {
        header.lines().find_map(|line| {
            let (left, right) = line.split_once('=')?;
            (left.trim() == name).then(|| right.split([',', '/']).next()?.trim().parse().ok())?
        })
    }

    #[test]
    fn constants_are_the_headers() {
        let header = std::fs::read_to_string("/usr/include/munge.h").unwrap();
        for (name, value) in super::ALL {
            assert_eq!(in_header(&header, name), Some(*value), "{name}");
        }
    }

    #[test]
    fn the_prototypes_are_the_headers() {
        let header = std::fs::read_to_string("/usr/include/munge.h").unwrap();
        let flat = header.split_whitespace().collect::<Vec<_>>().join(" ");
        for prototype in [
            "typedef struct munge_ctx * munge_ctx_t;",
            "munge_err_t munge_encode (char **cred, munge_ctx_t ctx, const void *buf, int len);",
            "munge_err_t munge_decode (const char *cred, munge_ctx_t ctx, void **buf, int *len, uid_t *uid, gid_t *gid);",
            "const char * munge_strerror (munge_err_t e);",
            "munge_ctx_t munge_ctx_create (void);",
            "void munge_ctx_destroy (munge_ctx_t ctx);",
            "const char * munge_ctx_strerror (munge_ctx_t ctx);",
            "munge_err_t munge_ctx_get (munge_ctx_t ctx, int opt, ...);",
            "munge_err_t munge_ctx_set (munge_ctx_t ctx, int opt, ...);",
        ] {
            assert!(flat.contains(prototype), "{prototype}");
        }
    }
}
