#include "api/staging.h"

#include "core/dtypes.h"

namespace fastnorm {

namespace {

// FNV-1a over the bytes of numbers.
class Hash {
  public:
    void add(std::uint64_t number) {
        for (int shift = 0; shift < 64; shift += 8) {
            value_ = (value_ ^ (number >> shift & 0xff)) * 0x100000001b3u;
        }
    }
    void add(std::int64_t number) { add(static_cast<std::uint64_t>(number)); }
    void add(int number) { add(std::int64_t{number}); }
    void add(double number) { add(bit_copy<std::uint64_t>(number + 0.0)); }  // -0 as 0

    std::uint64_t value() const { return value_; }

  private:
    std::uint64_t value_ = 0xcbf29ce484222325u;
};

}  // namespace

Staging::Staging(const Backend& backend, const TensorView& x, const Norm& norm,
                 Explanation* explanation)
    : backend_(backend),
      explanation_(explanation),
      order_(order_of_dims(x, norm)),
      view_(view_of(x, norm, order_)),
      centred_(norm.centred),
      dense_(dense_like(x, order_)) {}

std::int64_t Staging::mask_bytes() const {
    return signature_bytes + backend_.mask_bytes(view_, dense_.dtype);
}

std::uint64_t Staging::mask_signature(const Activation& activation) const {
    Hash hash;
    hash.add(backend_.mask_salt(dense_.dtype));
    hash.add(dense_.ndim);
    for (int i = 0; i < dense_.ndim; ++i) hash.add(dense_.shape[i]);
    for (int i = 0; i < order_.count; ++i) hash.add(order_.axis[i]);
    hash.add(order_.inner);
    hash.add(view_.group);
    hash.add(static_cast<int>(centred_));
    // Rows are numbered in one way, whatever strides they have.
    hash.add(view_.traversal == Traversal::features ? -1 : order_.outer);
    hash.add(static_cast<int>(activation.kind));
    hash.add(activation.alpha);
    hash.add(activation.beta);
    return hash.value();
}

const TensorView& Staging::stand_in(const char* name, const TensorView& tensor,
                                    const TensorView& dense, const DimOrder& order, bool result) {
    stand_ins_.emplace_back(new StandIn{dense, order, nullptr, result ? &tensor : nullptr});
    StandIn& made = *stand_ins_.back();
    if (explanation_ != nullptr) {
        explanation_->copied.emplace_back(name);
        made.view.data = tensor.data;
        return made.view;
    }
    std::int64_t bytes = size_of(tensor.dtype);
    for (int i = 0; i < tensor.ndim; ++i) bytes *= tensor.shape[i];
    made.memory = backend_.allocate(static_cast<std::size_t>(bytes));
    made.view.data = made.memory.get();
    if (!result) backend_.copy(made.view, tensor, order);
    return made.view;
}

const TensorView& Staging::input(const char* name, const TensorView& tensor) {
    if (!tensor.given() || walkable(tensor, view_, order_)) return tensor;
    return stand_in(name, tensor, dense_, order_, false);
}

const TensorView& Staging::output(const char* name, const TensorView& tensor) {
    if (!tensor.given() || walkable(tensor, view_, order_)) return tensor;
    return stand_in(name, tensor, dense_, order_, true);
}

PerStatistic Staging::values(const char* name, const TensorView& array, bool result) {
    if (!array.given()) return {};
    DimOrder order;
    std::int64_t stride = 0;  // from one value to the next
    bool even = true;
    std::int64_t below = 1;
    for (int axis = array.ndim - 1; axis >= 0; --axis) {
        if (array.shape[axis] == 1) continue;
        if (below == 1) stride = array.strides[axis];
        even &= array.strides[axis] == below * stride;
        below *= array.shape[axis];
    }
    if (even) return {static_cast<char*>(array.data), array.dtype, stride};
    for (int axis = 0; axis < array.ndim; ++axis) order.axis[order.count++] = axis;
    TensorView dense(nullptr, array.dtype, array.ndim, array.shape);
    dense.device = array.device;
    const TensorView& made = stand_in(name, array, dense, order, result);
    return {static_cast<char*>(made.data), array.dtype, size_of(array.dtype)};
}

PerStatistic Staging::input_values(const char* name, const TensorView& array) {
    return values(name, array, false);
}

PerStatistic Staging::output_values(const char* name, const TensorView& array) {
    return values(name, array, true);
}

View Staging::bind(std::initializer_list<std::pair<const TensorView*, Operand*>> operands) const {
    View view = view_;
    const TensorView* tensors[8];
    Operand* targets[8];
    int count = 0;
    for (const auto& [tensor, operand] : operands) {
        tensors[count] = tensor;
        targets[count++] = operand;
    }
    bind_operands(view, order_, tensors, targets, count);
    return view;
}

void Staging::commit() const {
    if (explanation_ != nullptr) return;
    for (const auto& made : stand_ins_) {
        if (made->result != nullptr) backend_.copy(*made->result, made->view, made->order);
    }
}

}  // namespace fastnorm
