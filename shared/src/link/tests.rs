//! Both halves against each other, without a network.
