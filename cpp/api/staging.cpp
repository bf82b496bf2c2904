#include "api/staging.h"

#include <cstring>

#include "core/dtypes.h"

namespace fastnorm {

namespace {

template <int size>
void copy_run(char* to, std::int64_t to_stride, const char* from, std::int64_t from_stride,
              std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
        std::memcpy(to + i * to_stride, from + i * from_stride, size);
    }
}

// Element by element, in the given order of dimensions.
void copy(const TensorView& to, const TensorView& from, const DimOrder& order) {
    const int last = order.axis[order.count - 1];
    std::int64_t index[max_dims] = {};
    auto* target = static_cast<char*>(to.data);
    const auto* source = static_cast<const char*>(from.data);
    for (;;) {
        const auto run = [&](auto size) {
            copy_run<size>(target, to.strides[last], source, from.strides[last], to.shape[last]);
        };
        switch (size_of(to.dtype)) {
            case 2: run(std::integral_constant<int, 2>{}); break;
            case 4: run(std::integral_constant<int, 4>{}); break;
            default: run(std::integral_constant<int, 8>{}); break;
        }
        int i = order.count - 2;
        for (; i >= 0; --i) {
            const int axis = order.axis[i];
            target += to.strides[axis];
            source += from.strides[axis];
            if (++index[i] < to.shape[axis]) break;
            target -= to.strides[axis] * to.shape[axis];
            source -= from.strides[axis] * to.shape[axis];
            index[i] = 0;
        }
        if (i < 0) return;
    }
}

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

Staging::Staging(const TensorView& x, int channel_axis, Explanation* explanation)
    : explanation_(explanation),
      order_(order_of_dims(x, channel_axis)),
      view_(batch_norm_view(x, order_)),
      dense_(dense_like(x, order_)) {}

std::int64_t Staging::mask_bytes() const {
    return signature_bytes + view_.runs() * view_.mask_row_bytes();
}

std::uint64_t Staging::mask_signature(const Activation& activation) const {
    Hash hash;
    hash.add(dense_.ndim);
    for (int i = 0; i < dense_.ndim; ++i) hash.add(dense_.shape[i]);
    hash.add(order_.axis[order_.channel]);
    for (int i = 0; i < order_.count; ++i) hash.add(order_.axis[i]);
    hash.add(static_cast<int>(activation.kind));
    hash.add(activation.alpha);
    hash.add(activation.beta);
    return hash.value();
}

TensorView& Staging::stand_in(const char* name, const TensorView& tensor,
                              const TensorView* result) {
    stand_ins_.emplace_back(new StandIn{dense_, nullptr, result});
    StandIn& made = *stand_ins_.back();
    if (explanation_ != nullptr) {
        explanation_->copied.emplace_back(name);
        made.view.data = tensor.data;
    } else {
        const auto bytes = static_cast<std::size_t>(view_.elements() * size_of(tensor.dtype));
        made.memory.reset(new char[bytes]);
        made.view.data = made.memory.get();
    }
    return made.view;
}

const TensorView& Staging::input(const char* name, const TensorView& tensor) {
    if (!tensor.given() || walkable(tensor, view_, order_)) return tensor;
    const TensorView& dense = stand_in(name, tensor, nullptr);
    if (explanation_ == nullptr) copy(dense, tensor, order_);
    return dense;
}

const TensorView& Staging::output(const char* name, const TensorView& tensor) {
    if (!tensor.given() || walkable(tensor, view_, order_)) return tensor;
    return stand_in(name, tensor, &tensor);
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
        if (made->result != nullptr) copy(*made->result, made->view, order_);
    }
}

}  // namespace fastnorm
