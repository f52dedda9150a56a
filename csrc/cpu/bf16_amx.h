// Products of a panel on AMX's tile registers, and the same blocking on tiles emulated in plain C++.
#pragma once

#include "bf16_kernels.h"

namespace smartcs {

// Runs anywhere, slowly: the blocking, edges and packing of the AMX product can be tested on every machine.
void bf16_product_amx_emulated(const PanelProduct& product);

#ifdef SMARTCS_HAVE_AMX
// Ends the process with an illegal instruction where AMX does not work.
void bf16_product_amx(const PanelProduct& product);
#endif

// Why AMX does not work here, or nullptr: asks the kernel for permission, then executes a product and checks it. Safe
// among other threads: while it runs, a fault of this thread is caught, one of another goes to the handler that was
// there before. Announcing is not enough, some hypervisors announce AMX that faults.
const char* amx_problem();

}  // namespace smartcs
