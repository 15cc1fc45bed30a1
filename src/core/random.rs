//! The system's random source.

use crate::core::error::{Error, Result};

pub fn fill(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|_| {
        Error::unfit("the system gives no random numbers")
            .with_help("is /dev/urandom there, and readable?")
    })
}
