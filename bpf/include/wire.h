/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What crosses between the BPF programs and user space. The only definition: the Rust types are generated from it. */
#ifndef SOCKPATH_WIRE_H
#define SOCKPATH_WIRE_H

#endif
